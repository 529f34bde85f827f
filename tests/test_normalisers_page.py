"""docs/normalisers.md: what it says of saved bytes and of lengths is what the layers do."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor, nn

from affnorm_zoo import get_normalizer, list_normalizers
from affnorm_zoo.evaluation.memory import saved_bytes

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "normalisers.md").read_text()
HEADER = re.search(r"\| name \|.*\n", PAGE)
ROWS = {
    cells[0].strip("`"): dict(zip(HEADER.group().strip("| \n").split(" | ")[1:], cells[1:], strict=True))
    for cells in (line.strip("| ").split(" | ") for line in PAGE[HEADER.end() :].split("\n\n")[0].splitlines()[1:])
}
WIDTH = 96


class Behind(nn.Module):
    """A norm and a linear layer, or the layer that is both, behind an activation that needs a gradient."""

    def __init__(self, name: str) -> None:
        super().__init__()
        spec = get_normalizer(name)
        self.shift = nn.Parameter(torch.zeros(WIDTH))
        plain = spec.linear is None
        self.layer = nn.Sequential(spec.norm(WIDTH), nn.Linear(WIDTH, 128)) if plain else spec.linear(WIDTH, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.shift)


def test_the_table_has_every_normaliser_of_tokens():
    tokens = {name for name in list_normalizers() if get_normalizer(name).linear or get_normalizer(name).norm}
    assert set(ROWS) == tokens


def test_the_experiment_with_centred_inputs_is_told_as_it_went():
    runs = json.loads((DOCS / "divergence/centred.json").read_text())["runs"]
    finals = [run for run in runs if run["kind"] == "final"]
    scores = {arm: [run["top1"] for run in finals if run["arm"] == arm] for arm in {run["arm"] for run in finals}}
    told = re.findall(r"\| ([\d.]+)(?: ± ([\d.]+))? \| (\d) \| [\d.]+ \| [\d.]+ \|\n", PAGE)
    expected = {
        (f"{mean(values):.1f}", f"{stdev(values):.1f}" if len(values) > 1 else "", str(len(values)))
        for values in scores.values()
    }
    assert set(told) == expected
    assert len(told) == len(scores)


@pytest.mark.parametrize("name", ROWS)
def test_saved_bytes(name):
    x = torch.randn(8, 64, WIDTH)
    assert round(saved_bytes(Behind(name), x) / (4 * x.numel()), 1) == float(ROWS[name]["saved"])


@pytest.mark.parametrize("name", [name for name in ROWS if get_normalizer(name).norm is not None])
def test_lengths(name):
    norm = get_normalizer(name).norm(WIDTH).double()
    x = torch.randn(1, WIDTH, dtype=torch.float64)
    x -= x.mean()
    lengths = torch.cat([norm(factor * x).norm(dim=-1) for factor in (1e-1, 1.0, 1e3)])
    root = WIDTH**0.5
    assert (lengths.max() <= root * (1 + 1e-9)) == (ROWS[name]["bounded"] == "yes")
    ignores = lengths.max() / lengths.min() < 1.01  # what an eps does to the shortest
    assert ignores == (ROWS[name]["ignores the length of x"] == "yes")
    if ROWS[name]["length of φ(x)"] == "√n":
        assert lengths[-1].item() == pytest.approx(root)
