"""The mapping of a file's tensors onto timm's names, by order."""

import pytest
import torch

from affnorm_zoo.errors import UsageError
from affnorm_zoo.studies.lite0 import map_in_order


def own():
    return {
        "stem.weight": torch.randn(4, 3, 3, 3),
        "bn.weight": torch.randn(4),
        "bn.running_mean": torch.randn(4),
        "bn.num_batches_tracked": torch.tensor(7),
        "head.weight": torch.randn(2, 4),
    }


def renamed(state):
    return {f"_{name}": torch.randn_like(t) if t.is_floating_point() else t + 1 for name, t in state.items()}


def test_tensors_take_the_names_of_the_model_in_order():
    mine = own()
    given = renamed(mine)
    mapped = map_in_order(given, mine)
    assert list(mapped) == list(mine)
    for name in mine:
        expected = mine[name] if name == "bn.num_batches_tracked" else given[f"_{name}"]
        assert torch.equal(mapped[name], expected), name


def test_counters_may_be_missing():
    mine = own()
    given = renamed(mine)
    del given["_bn.num_batches_tracked"]
    assert torch.equal(map_in_order(given, mine)["head.weight"], given["_head.weight"])


def test_another_number_of_tensors_is_refused():
    given = renamed(own())
    del given["_head.weight"]
    with pytest.raises(UsageError, match="must have 4 tensors, got 3"):
        map_in_order(given, own())


def test_another_shape_is_refused_and_named():
    given = renamed(own())
    given["_bn.weight"] = torch.randn(5)
    with pytest.raises(UsageError, match=r"_bn.weight must be \(4,\) as bn.weight, got \(5,\)"):
        map_in_order(given, own())
