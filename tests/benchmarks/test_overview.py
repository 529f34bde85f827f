"""The README's figure shows what the files say."""

import json
import re
from pathlib import Path

import pytest

from affnorm_zoo.benchmarks.overview import accuracies, draw_overview, saved_ratios

ROOT = Path(__file__).parents[2]


def test_accuracies_are_those_of_the_recipes_page():
    page = (ROOT / "docs/recipes.md").read_text()
    found = accuracies(ROOT / "docs/recipes")
    assert {arm: sorted(sizes) for arm, sizes in found.items()} == {arm: [2, 4, 8, 16] for arm in found}
    for size in (2, 4, 8, 16):
        section = page.partition(f"at batch size {size}\n")[2].partition("\n## ")[0]
        for arm, by_size in found.items():
            mean = 100 * sum(by_size[size]) / len(by_size[size])
            assert re.search(rf"\| {arm} \|.*{mean:.1f} ± ", section), (arm, size)


def test_a_final_run_counts_and_a_tuning_run_does_not(tmp_path):
    folder = tmp_path / "cifar10_resnet20_batch4/results"
    folder.mkdir(parents=True)
    run = dict(arm="a", is_final=True, top1=0.5, num_train_images=400, epochs=2, updates=200)
    (folder / "final.json").write_text(json.dumps(run))
    (folder / "tune.json").write_text(json.dumps(run | dict(is_final=False, top1=0.9)))
    assert accuracies(tmp_path) == {"a": {4: [0.5]}}


def test_the_figure_is_drawn(tmp_path):
    draw_overview(ROOT / "docs/recipes", ROOT / "docs/benchmarks/cpu.json", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    ratios = dict(saved_ratios(ROOT / "docs/benchmarks/cpu.json"))
    assert ratios["resnet50, batch norm"] == 1
    rows = json.loads((ROOT / "docs/benchmarks/cpu.json").read_text())["rows"]
    row = next(r for r in rows if (r["model"], r["normalizer"], r["mode"]) == ("resnet50", "patchnorm", "train"))
    assert ratios["resnet50, patchnorm"] == pytest.approx(row["saved_ratio"])
