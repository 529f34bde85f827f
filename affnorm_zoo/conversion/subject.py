import math

from torch import Tensor, nn

from affnorm_zoo.conversion.fit import Fit, fit_layer
from affnorm_zoo.conversion.pair import relative_error
from affnorm_zoo.conversion.report import LayerReport
from affnorm_zoo.conversion.view import LayerView
from affnorm_zoo.errors import UsageError
from affnorm_zoo.layers import BoundLayer

_CLOSE = 4.0  # κ/√n from which on gain and bias per channel are as good as all weights


class Subject:
    """One layer of the twin while it is fitted, and then measured.

    Args:
        name: of the layer.
        layer: the twin's.
        reference: the layer with the norm folded in, whose outputs are the targets.
        fit: see :func:`affnorm_zoo.convert`.
        order: the layers that have been fitted; this one is appended.
    """

    def __init__(
        self, name: str, layer: BoundLayer, reference: nn.Module, fit: str | None, order: list["Subject"]
    ) -> None:
        self.name = name
        self.layer = layer
        self.view = LayerView(layer)
        self.reference = reference
        self.order = order
        self.kind = fit or self._usual_fit()
        self.fit: Fit | None = None
        self.is_measured = False  # rather than fitted, when it runs
        self.length_square = self.spread = self.measured_error = 0.0

    def _usual_fit(self) -> str:
        is_close = self.view.kappa >= _CLOSE * math.sqrt(self.view.fan_in) and not self.view.is_standardized
        return "channel" if is_close else "lstsq"

    def before(self, x: Tensor, target: Tensor) -> None:
        """Fit the layer to give ``target`` for its inputs in the twin.

        Raises:
            UsageError: the model runs the layer a second time; see also :func:`fit_layer`.
        """
        if self.is_measured:
            return
        if self.fit is not None:
            raise UsageError(
                f"the model runs {self.name!r} more than once, and one fit cannot serve both: copy it first"
            )
        self.fit = fit_layer(self.kind, self.name, self.view, x, target, self.reference.weight, self.reference.bias)
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
        assert self.fit is not None
        kappa = self.view.kappa
        return LayerReport(
            name=self.name,
            fit=self.kind,
            c=self.layer.c,
            kappa=kappa,
            rms_over_kappa=math.sqrt(self.length_square) / kappa if kappa else math.inf,
            share=self.length_square / (self.length_square + kappa**2) if self.length_square else 0.0,
            spread=self.spread,
            predicted_error=self.fit.error,
            measured_error=self.measured_error,
        )
