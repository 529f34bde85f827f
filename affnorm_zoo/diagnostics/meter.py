"""The divergence of a model over any number of batches, in constant memory."""

from time import perf_counter
from typing import Any

from torch import Tensor, nn

from affnorm_zoo.diagnostics.attention import AttentionDivergence, measure_attention
from affnorm_zoo.diagnostics.distribution import Distribution
from affnorm_zoo.diagnostics.divergence import QUANTITIES, LayerDivergence, measure_divergence
from affnorm_zoo.diagnostics.recording import Loss


class LayerMeter:
    """One layer's distributions."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.distributions = {quantity: Distribution() for quantity in QUANTITIES}

    def add(self, layer: LayerDivergence) -> None:
        """Add one batch."""
        for quantity, distribution in self.distributions.items():
            distribution.add(getattr(layer, quantity))

    def summary(self) -> dict[str, Any]:
        """Each quantity's distribution, and two measures of how uneven the self factor is.

        ``cv`` is its standard deviation over its mean. ``p99_over_p1`` is the ratio of these percentiles, or None if
        infinite.
        """
        return {
            "layer": self.name,
            "kind": self.kind,
            **_unevenness(self.distributions["self_factor"]),
            **{quantity: distribution.summary() for quantity, distribution in self.distributions.items()},
        }


class AttentionMeter:
    """The distributions of one attention's factors, over all images, heads, and tokens or pairs of tokens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values, self.logits = Distribution(), Distribution()

    def add(self, attention: AttentionDivergence) -> None:
        """Add one batch."""
        self.values.add(attention.values)
        self.logits.add(attention.logits)

    def summary(self) -> list[dict[str, Any]]:
        """A row for the mixed values and one for the logits: the factor's distribution, and how uneven it is."""
        kinds = {"mixed values": self.values, "logits": self.logits}
        return [
            {"layer": self.name, "kind": kind, **_unevenness(factor), "factor": factor.summary()}
            for kind, factor in kinds.items()
        ]


def _unevenness(factor: Distribution) -> dict[str, float | None]:
    low, high = factor.quantile(0.01), factor.quantile(0.99)
    return {
        "cv": factor.std / factor.mean if factor.mean else None,
        "p99_over_p1": high / low if low > 0 else None,
    }


class DivergenceMeter:
    """Measure a model batch by batch; memory does not grow with the number of batches.

    Args:
        model, loss, sources: as in :func:`measure_divergence`.
        seed: of the positions; each batch draws different ones.
    """

    def __init__(self, model: nn.Module, loss: Loss, seed: int = 0, sources: int = 4) -> None:
        self.model = model
        self.loss = loss
        self.seed = seed
        self.sources = sources
        self.num_images = 0
        self.seconds = 0.0
        self._layers: dict[str, LayerMeter] = {}
        self._attentions: dict[str, AttentionMeter] = {}

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Measure one batch, (N, C, H, W) and (N,)."""
        start = perf_counter()
        # adding the number of images so far gives each batch different draws
        seed = self.seed + self.num_images
        for layer in measure_divergence(self.model, images, labels, self.loss, seed, self.sources):
            self._layers.setdefault(layer.name, LayerMeter(layer.name, layer.kind)).add(layer)
        for attention in measure_attention(self.model, images):
            self._attentions.setdefault(attention.name, AttentionMeter(attention.name)).add(attention)
        self.num_images += len(images)
        self.seconds += perf_counter() - start

    def summary(self) -> list[dict[str, Any]]:
        """One row per layer, in the order of the calls; see :meth:`LayerMeter.summary`."""
        return [layer.summary() for layer in self._layers.values()]

    def attention_summary(self) -> list[dict[str, Any]]:
        """Two rows per attention, in the order of the modules; see :meth:`AttentionMeter.summary`."""
        return [row for attention in self._attentions.values() for row in attention.summary()]
