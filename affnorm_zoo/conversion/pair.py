"""Two networks in one forward pass.

The network and its twin differ in a few layers only. One batch holds every image twice: the first half of it runs
through the network's layers, the second through the twin's, and all other modules run on both halves. So when a layer
is reached, its inputs in the twin so far and its targets in the network are at hand, in the order of execution. No
layer runs twice, nothing is stored but what a forward pass holds anyway, and a residual sum, an attention or a pooling
is the model's own code. The price is that all images are in memory at once, at one depth of the network.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Pair(nn.Module):
    """A layer of the network and the one of its twin, each on its half of the batch.

    Args:
        reference: maps the first half.
        twin: maps the second half.

    ``before`` is called with the twin's inputs and the network's outputs before the twin's layer runs, ``after`` with
    the outputs of the twin and of the network.
    """

    def __init__(self, reference: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.reference = reference
        self.twin = twin
        self.before: Callable[[Tensor, Tensor], None] | None = None
        self.after: Callable[[Tensor, Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        ours, theirs = x.chunk(2)
        target = self.reference(ours)
        if self.before is not None:
            self.before(theirs, target)
        output = self.twin(theirs)
        if self.after is not None:
            self.after(output, target)
        return torch.cat((target, output))


def run_both(network: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Run a network of pairs: every output tensor, of the reference and of the twin."""
    return [tuple(output.chunk(2)) for output in tensors(network(torch.cat((images, images))))]  # type: ignore[misc]


def tensors(output: Any) -> list[Tensor]:
    """The tensors in a model's output, or in any tree of lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def relative_error(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """‖twin - reference‖ / ‖reference‖ over all tensors of a list of (reference, twin)."""
    squares = sum(float((twin.double() - reference.double()).square().sum()) for reference, twin in pairs)
    size = sum(float(reference.double().square().sum()) for reference, _ in pairs)
    return math.sqrt(squares / size) if size else math.sqrt(squares)
