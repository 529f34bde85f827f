"""Structured pruning by torch-pruning, which knows torch's own layers only."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from affnorm_zoo.layers import AffineLikeLinear, NormLikeLinear, PatchNormConv2d, PatchNormConv2dSame


def pruners() -> dict[type[nn.Module], Any]:
    """How each divergence-free layer loses channels, for the ``customized_pruners`` of torch-pruning.

        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, images, customized_pruners=affnorm_zoo.pruning.pruners())
        group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=[0, 2])
        group.prune()

    The gain goes with the weight. The scale c and κ of a layer stay those of its full size, so that an input channel
    that is zero everywhere can go without a change of the outputs.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    from torch_pruning.pruner import function

    class LinearPruner(function.LinearPruner):
        """As of a linear layer."""

        TARGET_MODULES = None  # ours are no nn.Linear

    class ConvPruner(function.ConvPruner):
        """As of a convolution, depthwise or not, and of its gain."""

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            if layer.gain is not None:
                kept = sorted(set(range(layer.out_channels)) - set(idxs))
                layer.gain = self._prune_parameter_and_grad(layer.gain, kept, 0)
            if layer.groups == layer.out_channels > 1:
                return function.DepthwiseConvPruner.prune_out_channels(self, layer, idxs)
            return super().prune_out_channels(layer, idxs)

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            if layer.groups == layer.out_channels > 1:
                return self.prune_out_channels(layer, idxs)
            return super().prune_in_channels(layer, idxs)

    linear, conv = LinearPruner(), ConvPruner()
    return {AffineLikeLinear: linear, NormLikeLinear: linear, PatchNormConv2d: conv, PatchNormConv2dSame: conv}
