"""Structured pruning by torch-pruning, which knows torch's own layers only."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from affnorm_zoo.layers import AffineLikeLinear, NormLikeLinear, PatchNormConv2d, PatchNormConv2dSame


def pruners() -> dict[type[nn.Module], Any]:
    """How each divergence-free layer loses channels, for the ``customized_pruners`` of torch-pruning.

        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(model, images, customized_pruners=affnorm_zoo.pruning.pruners())
        group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=[0, 2])
        group.prune()

    Importances need :func:`weighing`, and vision transformers a ``forward_fn`` that applies the classifier to all
    tokens, ``lambda model, x: model.head(model.forward_features(x))``: torch-pruning recognises tokens by an
    ``nn.Linear`` with a three-dimensional output, and our layers are not of that class.

    The gain goes with the weight. The scale c and κ of a layer stay those of its full size, so that an input channel
    that is zero everywhere can go without a change of the outputs.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    from torch_pruning.ops import OPTYPE
    from torch_pruning.pruner import function

    class LinearPruner(function.LinearPruner):
        """As of a linear layer."""

        TARGET_MODULES = None  # ours are no nn.Linear
        like = function.PrunerBox[OPTYPE.LINEAR]

    class ConvPruner(function.ConvPruner):
        """As of a convolution, depthwise or not, and of its gain."""

        like = function.PrunerBox[OPTYPE.CONV]

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


def weighing(importance: Any) -> Callable[[Any], Any]:
    """Let an importance of torch-pruning weigh our layers as it does torch's; alone it leaves them out.

    A group of channels that only our layers share would then never be pruned, without a word.

    Args:
        importance: such as ``torch_pruning.importance.GroupMagnitudeImportance()``; its ``target_types`` grow by ours.
    """
    importance.target_types = [*importance.target_types, *pruners()]

    def weigh(group: Any) -> Any:
        known = type(group)()
        for item in group:
            dep = copy.copy(item.dep)
            like = getattr(getattr(dep.handler, "__self__", None), "like", None)
            if like is not None:
                dep.handler = getattr(like, dep.handler.__name__)
            known.add_dep(dep, item.idxs)
            known[len(known) - 1].root_idxs = item.root_idxs
        return importance(known)

    return weigh
