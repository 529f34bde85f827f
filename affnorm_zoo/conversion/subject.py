"""The layers of the twin while they are fitted, and then measured."""

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from affnorm_zoo.conversion.fit import POSITIONS_PER_UNKNOWN, fit_layer
from affnorm_zoo.conversion.pair import Pair, relative_error, run_both
from affnorm_zoo.conversion.prepare import Prepared
from affnorm_zoo.conversion.report import LayerReport
from affnorm_zoo.conversion.view import LayerView
from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory import Binding
from affnorm_zoo.layers import BoundLayer

_CLOSE = 4.0  # κ/√n from which on gain and bias per channel are as good as all weights
_FEW = 32  # weights per channel, as of depthwise kernels, that a few images determine


class Subject:
    """One layer of the twin while it is fitted, and then measured.

    Args:
        name: of the layer.
        layer: the twin's.
        reference: the layer with the norm folded in, whose outputs are the targets.
        fit: see :func:`affnorm_zoo.convert`.
        norm_first: the reference reads its input through an L2 norm of RMS 1.
        order: the layers that have been fitted; this one is appended.
    """

    def __init__(
        self,
        name: str,
        layer: BoundLayer,
        reference: nn.Module,
        fit: str | None,
        norm_first: bool,
        order: list["Subject"],
    ) -> None:
        self.name = name
        self.layer = layer
        self.view = LayerView(layer, norm_first)
        self.reference = reference
        self.order = order
        self.kind = fit
        self.predicted_error: float | None = None
        self.is_measured = False  # rather than fitted, when it runs
        self.length_square = self.spread = self.measured_error = 0.0

    def _usual_fit(self, positions: int) -> str:
        fan_in = self.view.fan_in
        is_close = self.view.kappa >= _CLOSE * math.sqrt(fan_in) and not self.view.is_standardized
        is_determined = fan_in <= _FEW and positions >= POSITIONS_PER_UNKNOWN * (fan_in + 1)
        return "channel" if is_close and not is_determined else "lstsq"

    def before(self, x: Tensor, target: Tensor) -> None:
        """Fit the layer to give ``target`` for its inputs in the twin.

        Raises:
            UsageError: the model runs the layer a second time; see also :func:`fit_layer`.
        """
        if self.is_measured:
            return
        if self.predicted_error is not None:
            raise UsageError(
                f"the model runs {self.name!r} more than once, and one fit cannot serve both: copy it first"
            )
        source = (self.reference.weight, self.reference.bias)
        self.kind = self.kind or self._usual_fit(target.numel() // len(source[0]))
        self.predicted_error = fit_layer(self.kind, self.name, self.view, x, target, *source)
        self.order.append(self)
        square_sums = self.view.square_sums(x)
        lengths = (square_sums + self.view.kappa**2).sqrt()
        self.length_square = float(square_sums.mean())
        self.spread = float(lengths.std(correction=0) / lengths.mean())

    def after(self, output: Tensor, target: Tensor) -> None:
        """Measure the layer."""
        if self.is_measured:
            self.measured_error = relative_error([(target, output)])

    def report(self) -> LayerReport:
        """What became of the layer."""
        assert self.predicted_error is not None
        assert self.kind is not None
        kappa = self.view.kappa
        return LayerReport(
            name=self.name,
            fit=self.kind,
            c=self.layer.c,
            kappa=kappa,
            rms_over_kappa=math.sqrt(self.length_square) / kappa if kappa else math.inf,
            share=self.length_square / (self.length_square + kappa**2) if self.length_square else 0.0,
            spread=self.spread,
            predicted_error=self.predicted_error,
            measured_error=self.measured_error,
        )


@dataclass
class Paired:
    """The reference and its twin in one network; see :mod:`affnorm_zoo.conversion.pair`.

    Args:
        network: the twin, with pairs in it.
        subjects: the layers that are fitted.
        order: those that have been, in the order of execution.
    """

    network: nn.Module
    subjects: list[Subject] = field(default_factory=list)
    order: list[Subject] = field(default_factory=list)

    def fit(self, images: Tensor) -> None:
        """Fit every layer, in one forward pass.

        Raises:
            UsageError: a layer does not run.
        """
        run_both(self.network, images)
        missed = [subject.name for subject in self.subjects if subject not in self.order]
        if missed:
            raise UsageError(f"the model's forward does not run {', '.join(missed)}: remove it, then convert")

    def measure(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Measure every layer; the outputs of reference and twin."""
        for subject in self.subjects:
            subject.is_measured = True
        return run_both(self.network, images)

    def unpaired(self) -> nn.Module:
        """The twin alone, from the same modules."""
        for name, module in list(self.network.named_modules()):
            if isinstance(module, Pair):
                self.network.set_submodule(name, module.twin)
        return self.network


def pair_up(unfused: nn.Module, prepared: Prepared, fit: str | None) -> Paired:
    """Put every bound layer beside the reference's, in place, and give those that need no fit their weights."""
    paired = Paired(unfused)
    for binding in prepared.bindings:
        if binding.norm_first:
            _pair(unfused, prepared.reference, binding.slot)
        for name in (*binding.layers, *binding.unnormed):
            layer = unfused.get_submodule(name)
            if not isinstance(layer, BoundLayer):  # one without a norm that stays plain
                continue
            pair, reads_norm = _pair(unfused, prepared.reference, name), _reads_norm(binding, name)
            if reads_norm and layer.inner_kappa() is None:  # c W x / ‖x‖ + b is what the reference computes
                layer.weight.mul_(math.sqrt(layer.in_features) / layer.c)
                continue
            subject = Subject(name, layer, pair.reference, fit, reads_norm, paired.order)
            pair.before, pair.after = subject.before, subject.after
            paired.subjects.append(subject)
    return paired


def _reads_norm(binding: Binding, name: str) -> bool:
    return binding.norm_first and name in binding.layers


def _pair(unfused: nn.Module, reference: nn.Module, name: str) -> Pair:
    pair = Pair(reference.get_submodule(name), unfused.get_submodule(name)).eval()
    unfused.set_submodule(name, pair)
    return pair
