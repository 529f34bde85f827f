import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from affnorm_zoo.conversion.balance import balance
from affnorm_zoo.conversion.check import check_request
from affnorm_zoo.conversion.images import collect
from affnorm_zoo.conversion.layer_norm import eps_note
from affnorm_zoo.conversion.names import name_twin
from affnorm_zoo.conversion.pair import relative_error, tensors
from affnorm_zoo.conversion.prepare import Prepared, prepare
from affnorm_zoo.conversion.report import Conversion
from affnorm_zoo.conversion.subject import pair_up
from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory import bind
from affnorm_zoo.registry import NormalizerSpec


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
    """Replace a trained network's norms by a divergence-free normaliser, and keep what it computes as far as possible.

    A convolutional network: every batch norm is folded into its convolution, and a divergence-free layer takes the
    place of both. Its weights are fitted to the folded layer's outputs. Layers are fitted in the order of execution,
    each on inputs from the layers fitted before it. This needs a few hundred images, but no labels and no training.
    Where it does not change what the network computes, activations of the twin are scaled to RMS 1.

    A transformer with layer norms: ``"normlike"`` is exact, up to the norms' eps, and needs no images. ``"affinelike"``
    is fitted as convolutions are.

    The larger κ, the closer a fitted twin is to the network, and the less it normalises: see
    :attr:`LayerReport.share`.

    Args:
        model: a trained network, or a part of one such as a detector's backbone; it is left unchanged.
        normalizer: a divergence-free normaliser for the model's layers: ``"patchnorm"``, ``"patchnorm_l2"`` or
            ``"patchnorm_ws"`` for convolutions with batch norm, ``"normlike"`` or ``"affinelike"`` for transformers.
            The standardised kernels of ``"patchnorm_ws"`` cannot see the mean of their input, and fit less well.
        images: batches as the model wants them, (N, C, H, W) and normalised, or (images, labels) pairs of which the
            labels are not used; at most 2,048 images are read and held in memory. Every eighth image is kept for
            measuring. May be None where the conversion is exact.
        scale: see :func:`affnorm_zoo.functional.resolve_scale`; any positive r in ``"rms<r>"``.
        stem_scale: scale of the first converted layer, if it differs.
        fit: ``"layer"`` scales a layer's weights by one factor, ``"channel"`` fits gain and bias per output channel,
            ``"lstsq"`` all weights; None takes ``"lstsq"`` below κ = 4√n, and for kernels of at most 32 weights
            per channel, such as depthwise ones, if there are 100 positions per weight; ``"channel"`` otherwise.
        unnormed: what happens to the linear layers of a transformer that have no norm before them: ``"plain"`` keeps
            them, ``"bind"`` converts and fits them too.

    Returns:
        The twin, and for every fitted layer how close it is; ``print`` shows a table.

    Raises:
        UsageError: the model cannot be converted, or the images do not fit it; the message says why and what to do.
    """
    spec = check_request(normalizer, fit, unnormed)
    evaluated = copy.deepcopy(model).eval()
    prepared = prepare(evaluated, spec)
    options: dict[str, Any] = dict(scale=scale, stem_scale=stem_scale, unnormed=unnormed, init=False)
    unfused = copy.deepcopy(prepared.slotted)
    bind(unfused, absorb=False, **options)
    paired = pair_up(unfused, prepared, fit)
    if paired.subjects and images is None:
        raise UsageError(f"{normalizer!r} is fitted to activations: give images, a few hundred as the model wants them")
    fitting, measuring = (None, None) if images is None else collect(images, evaluated, bool(paired.subjects))
    if fitting is not None and paired.subjects and not prepared.is_exact_but_for_eps:
        balance(prepared.reference, paired.network, {subject.name for subject in paired.subjects}, fitting)
    _check_preparation(evaluated, prepared, measuring)
    if fitting is not None and paired.subjects:
        paired.fit(fitting)
    outputs = [] if measuring is None else paired.measure(measuring)

    twin = copy.deepcopy(prepared.slotted)
    bind(twin, **options)
    twin.load_state_dict(paired.unpaired().state_dict())
    _restore_modes(twin, model)
    return Conversion(
        model=twin,
        normalizer=normalizer,
        name=name_twin(twin, normalizer, scale, unnormed),
        layers=tuple(subject.report() for subject in paired.order),
        num_images=len(fitting) if fitting is not None and paired.subjects else 0,
        num_held_out=0 if measuring is None else len(measuring),
        logit_error=relative_error(outputs) if outputs else None,
        agreement=_agreement(outputs),
        notes=(
            *(eps_note(evaluated, measuring) if prepared.is_exact_but_for_eps else ()),
            *_standardization_note(spec),
        ),
    )


def _check_preparation(model: nn.Module, prepared: Prepared, images: Tensor | None) -> None:
    """Raise UsageError unless the folded network computes what the model computes."""
    for name, probe in prepared.probes.items() if images is None else [("", images[:2])]:
        ours, theirs = (tensors(net.get_submodule(name)(probe)) for net in (prepared.reference, model))
        if not ours:
            raise UsageError("the model returns no tensors: convert the part of it that does")
        if not all(bool(output.isfinite().all()) for output in theirs):
            raise UsageError("the model's outputs are non-finite for these images: look at the images, or use float32")
        error = relative_error(list(zip(theirs, ours, strict=True)))
        tolerance = max(math.sqrt(torch.finfo(probe.dtype).eps), 1e-2 if prepared.is_exact_but_for_eps else 0.0)
        if not error <= tolerance:
            raise UsageError(
                f"folding the norms changes the model's outputs by {error:.2g} of their size: a norm is not directly "
                "beside its layer, or what stands between them is also used elsewhere; convert a part without it"
            )


def _standardization_note(spec: NormalizerSpec) -> tuple[str, ...]:
    if not spec.options.get("weight_standardization"):
        return ()
    return (f"the kernels of {spec.name!r} sum to zero and cannot see the mean of their input: it fits less well",)


def _restore_modes(twin: nn.Module, model: nn.Module) -> None:
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in twin.named_modules():
        module.training = modes.get(name, model.training)


def _agreement(outputs: list[tuple[Tensor, Tensor]]) -> float | None:
    if len(outputs) != 1 or outputs[0][0].dim() != 2:
        return None
    theirs, ours = outputs[0]
    return float((theirs.argmax(dim=1) == ours.argmax(dim=1)).double().mean())
