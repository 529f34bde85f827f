import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from affnorm_zoo.conversion.check import check_request
from affnorm_zoo.conversion.fold import fold_batch_norms, without_slots
from affnorm_zoo.conversion.images import collect
from affnorm_zoo.conversion.names import name_twin
from affnorm_zoo.conversion.pair import Pair, relative_error, run_both, tensors
from affnorm_zoo.conversion.report import Conversion
from affnorm_zoo.conversion.subject import Subject
from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory import bind
from affnorm_zoo.layers import BoundLayer


@torch.no_grad()
def convert(
    model: nn.Module,
    normalizer: str,
    *,
    images: Iterable[Any] | None = None,
    scale: str | tuple[float, float] = "rms4",
    stem_scale: str | tuple[float, float] | None = None,
    fit: str | None = None,
    unnormed: str = "plain",
) -> Conversion:
    """Put a divergence-free normaliser in the place of a trained network's norms, and keep what the network computes.

    Every batch norm is folded into its convolution, a divergence-free layer takes the place of both, and its weights
    are fitted so that it gives the folded layer's outputs: one layer after the other, in the order of execution, on
    inputs of the twin so far. No labels and no training are needed; a few hundred images are.

    The larger κ, the closer the twin is to the network, and the less it normalises: see
    :attr:`LayerReport.share`.

    Args:
        model: a trained network, or a part of one such as a detector's backbone; it is left unchanged.
        normalizer: a divergence-free normaliser for such layers, ``"patchnorm"`` for convolutions.
        images: batches as the model wants them, (N, C, H, W) and normalised, or (images, labels) pairs of which the
            labels are not used; at most 2,048 images are read and held in memory. Every eighth image is kept for
            measuring.
        scale: see :func:`affnorm_zoo.functional.resolve_scale`; any positive r in ``"rms<r>"``.
        stem_scale: scale of the first converted layer, if it differs.
        fit: ``"layer"`` scales a layer's weights by one factor, ``"channel"`` fits gain and bias per output channel,
            ``"lstsq"`` all weights; None takes ``"lstsq"`` below κ = 4√n and ``"channel"`` from there on.
        unnormed: what becomes of the linear layers of a transformer that have no norm before them: ``"plain"`` keeps
            them, ``"bind"`` converts them too.

    Returns:
        The twin, and for every layer how close it is; ``print`` shows a table.

    Raises:
        UsageError: the model cannot be converted, or the images do not fit it; the message says why and what to do.
    """
    spec = check_request(normalizer, fit, unnormed)
    evaluated = copy.deepcopy(model).eval()
    slotted = fold_batch_norms(evaluated, spec.name)
    if images is None:
        raise UsageError(f"{normalizer!r} is fitted to activations: give images, a few hundred as the model wants them")
    fitting, measuring = collect(images, evaluated)
    folded = without_slots(slotted)
    _check_folding(evaluated, folded, fitting[:2])
    scales = dict(scale=scale, stem_scale=stem_scale, init=False)
    unfused = copy.deepcopy(slotted)
    bind(unfused, absorb=False, **scales)
    subjects, order = _pair_up(unfused, folded, fit)
    run_both(unfused, fitting)
    missed = [subject.name for subject in subjects if subject not in order]
    if missed:
        raise UsageError(f"the model's forward does not run {', '.join(missed)}: remove what is not run, then convert")
    for subject in subjects:
        subject.is_measured = True
    outputs = run_both(unfused, measuring)

    twin = copy.deepcopy(slotted)
    bind(twin, **scales)
    twin.load_state_dict(_without_pairs(unfused).state_dict())
    _restore_modes(twin, model)
    return Conversion(
        model=twin,
        normalizer=normalizer,
        name=name_twin(twin, normalizer, scale),
        layers=tuple(subject.report() for subject in order),
        num_images=len(fitting),
        num_held_out=len(measuring),
        logit_error=relative_error(outputs),
        agreement=_agreement(outputs),
    )


def _check_folding(model: nn.Module, folded: nn.Module, images: Tensor) -> None:
    """Raise UsageError unless the folded network computes what the model computes."""
    pairs = list(zip(tensors(folded(images)), tensors(model(images)), strict=True))
    if not pairs:
        raise UsageError("the model returns no tensors: convert the part of it that does")
    error, tolerance = relative_error(pairs), math.sqrt(torch.finfo(images.dtype).eps)
    if not error <= tolerance:
        raise UsageError(
            f"folding the batch norms changes the model's outputs by {error:.2g} of their size: a norm is not directly "
            "behind its convolution, or the convolution's output is also used elsewhere; convert a part without it"
        )


def _pair_up(unfused: nn.Module, folded: nn.Module, fit: str | None) -> tuple[list[Subject], list[Subject]]:
    """Put every bound layer beside the folded one, in place; a second list fills in the order of execution."""
    subjects: list[Subject] = []
    order: list[Subject] = []
    for name, layer in [(n, m) for n, m in unfused.named_modules() if isinstance(m, BoundLayer)]:
        reference = folded.get_submodule(name)
        subject = Subject(name, layer, reference, fit, order)
        pair = Pair(reference, layer)
        pair.before, pair.after = subject.before, subject.after
        unfused.set_submodule(name, pair.eval())
        subjects.append(subject)
    return subjects, order


def _without_pairs(network: nn.Module) -> nn.Module:
    for name, module in list(network.named_modules()):
        if isinstance(module, Pair):
            network.set_submodule(name, module.twin)
    return network


def _restore_modes(twin: nn.Module, model: nn.Module) -> None:
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in twin.named_modules():
        module.training = modes.get(name, model.training)


def _agreement(outputs: list[tuple[Tensor, Tensor]]) -> float | None:
    if len(outputs) != 1 or outputs[0][0].dim() != 2:
        return None
    theirs, ours = outputs[0]
    return float((theirs.argmax(dim=1) == ours.argmax(dim=1)).double().mean())
