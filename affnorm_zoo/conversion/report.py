"""What a conversion hands back."""

from dataclasses import dataclass, field

from torch import nn

_COLUMNS = ("layer", "fit", "c", "κ", "RMS/κ", "share", "spread", "predicted", "measured")


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer of the twin.

    Args:
        name: its path in the model.
        fit: ``"layer"``, ``"channel"`` or ``"lstsq"``.
        c, kappa: its scale; κ is 0 for a layer without one.
        rms_over_kappa: √E‖x_p‖² / κ; infinite without κ.
        share: the normaliser's share of the divisor's square, 1 / (1 + κ² / E‖x_p‖²): 0 is an affine layer, 1 divides
            by the input's length alone.
        spread: standard deviation of s_p = √(‖x_p‖² + κ²) over its mean: what no factor can remove.
        predicted_error: distance of the outputs from the network's, over the RMS of these, on the images of the fit.
        measured_error: the same on images that were not used for fitting.
    """

    name: str
    fit: str
    c: float
    kappa: float
    rms_over_kappa: float
    share: float
    spread: float
    predicted_error: float
    measured_error: float


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A network with a divergence-free normaliser in place of its norm, and how close it is to the network.

    Args:
        model: the twin; the source model is unchanged.
        normalizer: its name.
        name: timm's name under which its weights load, or empty where the zoo has none.
        layers: the fitted layers, in the order in which the model runs them; empty where no layer needed a fit.
        num_images: that the layers were fitted with.
        num_held_out: images that were not used for fitting, and that measure.
        logit_error: distance of the outputs from the network's, over the RMS of these, on the held-out images; None
            without images.
        agreement: share of the held-out images that both put into the same class; None without images, and for a
            model that is not a classifier.
        notes: what else the user must know.
    """

    model: nn.Module
    normalizer: str
    name: str = ""
    layers: tuple[LayerReport, ...] = ()
    num_images: int = 0
    num_held_out: int = 0
    logit_error: float | None = None
    agreement: float | None = None
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"{self.normalizer}" + (f", loads as {self.name}" if self.name else "")]
        if self.layers:
            rows = [_COLUMNS, *map(_cells, self.layers)]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if self.num_images:
            lines.append(f"fitted with {self.num_images} images")
        if self.logit_error is not None:
            agreement = "" if self.agreement is None else f", same class for {100 * self.agreement:.1f} %"
            lines.append(f"on {self.num_held_out} other images: output error {self.logit_error:.2g}{agreement}")
        return "\n".join([*lines, *self.notes])


def _cells(row: LayerReport) -> tuple[str, ...]:
    ratios = (row.c, row.kappa, row.rms_over_kappa)
    parts = (row.share, row.spread, row.predicted_error, row.measured_error)
    return (row.name, row.fit, *(f"{x:.3g}" for x in ratios), *(f"{x:.3f}" for x in parts))
