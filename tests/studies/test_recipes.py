"""The page of recipes says what the result files say; recipes that have not been run can at least begin."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import ROOT, run

from affnorm_zoo.config import load_config
from affnorm_zoo.studies.forest import Effect
from affnorm_zoo.studies.recipes import _verdict, write_recipes
from affnorm_zoo.studies.sweep import best_point, load_sweep

SWEEP = """
title: A net on pictures
remark: A remark.
baseline: old
arms: {old: [], new: [], other: []}
seeds: 2
aims:
  - {arm: new, over: old, points: 1.0}
  - {arm: old, over: new, points: -1.0}
  - {arm: other, over: old}
in_readme: new
"""
NOT_RUN = [*sorted((ROOT / "configs").glob("imagenet*/*.yaml")), ROOT / "configs/cifar10/resnet18_cifar.yaml"]
TOP1 = {"old": (0.50, 0.52), "new": (0.60, 0.64)}


@pytest.fixture
def tree(tmp_path):
    """A repository's folders, with two arms' runs."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/one.yaml").write_text(SWEEP)
    (tmp_path / "configs/empty.yaml").write_text(SWEEP.replace("A net", "Nothing"))
    plain = SWEEP.partition("aims")[0]
    (tmp_path / "configs/one16.yaml").write_text(plain.replace("A net", "An ablation"))
    (tmp_path / "configs/one2.yaml").write_text(plain.replace("A net", "Another net") + "in_readme: new\n")
    (tmp_path / "README.md").write_text(
        "before\n<!-- results: scripts/recipes.py -->\nold\n<!-- end of results -->\nafter\n"
    )
    results = tmp_path / "docs/recipes/one/results"
    results.mkdir(parents=True)
    for arm, values in TOP1.items():
        for seed, top1 in enumerate(values, 1):
            result = {
                "arm": arm, "point": {}, "seed": seed, "is_final": True, "note": "drawn", "top1": top1,
                "diverged": False, "data": "pictures", "num_train_images": 1200, "num_images": 300, "epochs": 4,
                "updates": 1600, "precision": "bf16",
                "environment": {"device": "a machine", "cpu_count": 2, "torch": f"2.{8 + seed}", "timm": "1.0"},
            }  # fmt: skip
            (results / f"{arm}_s{seed}_final.json").write_text(json.dumps(result))
    for name in ("one2", "one16"):
        shutil.copytree(results, tmp_path / f"docs/recipes/{name}/results")
    return tmp_path


def write(tree):
    page, readme = tree / "docs/recipes.md", tree / "README.md"
    write_recipes(tree / "configs", tree / "docs/recipes", page, readme)
    return page.read_text(), readme.read_text()


def test_the_page_says_what_was_aimed_at_and_what_was_found(tree):
    page, readme = write(tree)
    assert "\n- Targets: 1 met, 1 missed, 1 open.\n" in page
    assert "| A net on pictures: new - old | ≥ +1.0 | +11.00 points (p = " in page
    assert page.count("| met |") == 1
    assert "| A net on pictures: old - new | ≥ -1.0 | -11.00 points (p = " in page
    assert "| missed by 10.00 points |" in page
    assert "| A net on pictures: other - old | ≥ +0.0 | not run | open |" in page
    assert "\ndrawn: 1,200 training and 300 test images, 4 epochs, 1,600 updates, in bfloat16.\n" in page
    assert "Hardware: a machine, 2 cores; torch 2.9 and 2.10, timm 1.0." in page
    assert "A remark." in page
    assert "Nothing on pictures" not in page
    assert readme.startswith("before\n<!-- results")
    assert readme.endswith("<!-- end of results -->\nafter\n")
    assert "| A net on pictures | `old` 51.0 ± 1.4 | `new` 62.0 ± 2.8 | +11.00 points (p = " in readme
    assert "\nold\n" not in readme
    assert "| Another net on pictures | `old` 51.0 ± 1.4 | `new` 62.0 ± 2.8 |" in readme
    assert "An ablation" not in readme
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles[:2] == ["## Verdict", "## How it was measured"]
    for link in re.findall(r"!\[.+?\]\((.+?)\)", page):
        assert (tree / "docs" / link).is_file()
    assert titles[2:] == ["## A net on pictures", "## Another net on pictures", "## An ablation on pictures"]
    assert write(tree) == (page, readme)


def test_the_training_loss_stands_in_the_table_if_every_run_has_it(tree):
    files = sorted((tree / "docs/recipes/one/results").glob("*.json"))
    for number, file in enumerate(files):
        assert "training loss" not in write(tree)[0]
        file.write_text(json.dumps({**json.loads(file.read_text()), "train_loss": 0.5 + 0.1 * number}))
    page, _ = write(tree)
    assert "| difference to the baseline | training loss |" in page
    assert "| baseline | 0.750 |" in page  # old comes after new
    assert "| other | not run | 0 |  |  |" in page


def test_the_factors_of_attention_stand_below_the_table(tree):
    for seed, factors in ((1, (3.0, 5.0)), (2, (4.0, 9.0))):
        file = tree / f"docs/recipes/one/results/new_s{seed}_final.json"
        result = json.loads(file.read_text())
        rows = [
            {"layer": f"blocks.{index}.attn", "kind": kind, "factor": factor * (1 + 9 * (kind == "logits")), "cv": 0.1}
            for index, factor in enumerate(factors)
            for kind in ("mixed values", "logits")
        ]
        result["attention"] = {"first": rows, "last": [{**row, "factor": 2 * row["factor"], "cv": 0.3} for row in rows]}
        file.write_text(json.dumps(result))
    page = tree / "docs/recipes.md"
    write_recipes(tree / "configs", tree / "docs/recipes", page, tree / "README.md")
    text = page.read_text()
    assert text.count("mixed values, untrained") == 1
    assert "| new | 4.5 (cv 0.1) | 9 (cv 0.3) | 45 (cv 0.1) | 90 (cv 0.3) |" in text


def test_an_aim_is_not_judged_before_all_runs_are_made(tree):
    (tree / "docs/recipes/one/results/new_s2_final.json").unlink()
    page, _ = write(tree)
    assert "| A net on pictures: new - old | ≥ +1.0 | +9.00 points (one run) | open, 1 of 2 runs |" in page
    assert "| A net on pictures: old - new | ≥ -1.0 | -9.00 points (one run) | open, 1 of 2 runs |" in page
    assert "| met |" not in page


def test_runs_of_different_budgets_do_not_share_a_table(tree):
    file = tree / "docs/recipes/one/results/new_s1_final.json"
    file.write_text(file.read_text().replace('"epochs": 4', '"epochs": 5'))
    with pytest.raises(ValueError, match="differ in epochs"):
        write(tree)


def test_only_divergence_free_methods_are_counted_by_their_sign():
    def effect(method, gap):
        return Effect(f"{method} - batchnorm", gap, gap, gap, "ahead" if gap > 0 else "behind")

    text = _verdict([], [effect("patchnorm_ws_rms4", 1), effect("patchnorm", -1), effect("groupnorm", -1)])
    assert text.endswith(": 1 ahead, 0 not significantly different, 1 behind.")


def test_the_pages_are_those_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    readme = Path(shutil.copy("README.md", tmp_path))
    shutil.copytree("docs/recipes", tmp_path / "recipes")
    write_recipes(Path("configs/sweeps"), tmp_path / "recipes", tmp_path / "recipes.md", readme)
    assert (tmp_path / "recipes.md").read_text() == Path("docs/recipes.md").read_text()
    assert readme.read_text() == Path("README.md").read_text()


@pytest.mark.parametrize(
    ("recipe", "sweep"), [("resnet20_cifar", "cifar10_resnet20"), ("vit_nano_patch4_32", "cifar10_vit_nano_e15")]
)
def test_a_recipe_has_the_rate_that_tuning_found_best(recipe, sweep):
    config = load_config([ROOT / f"configs/cifar10/{recipe}.yaml"])
    compared = load_sweep(ROOT / f"configs/sweeps/{sweep}.yaml")
    arm = next(arm for arm, parts in compared.arms.items() if f"model.name={config.model.name}" in parts)
    best = best_point(compared, arm, ROOT / "docs/recipes" / sweep)
    assert best == {"optim.name": config.optim.name, "optim.lr": config.optim.lr}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A thousand classes of one random picture each."""
    root = tmp_path_factory.mktemp("imagenet")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.jpg")
    for split in ("train", "val"):
        for number in range(1000):
            folder = root / split / f"n{number:08}"
            folder.mkdir(parents=True)
            os.link(root / "picture.jpg", folder / "0.jpg")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("file", NOT_RUN, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_recipes_that_have_not_been_run_begin(file, imagenet, tmp_path):
    small = (
        "data.val_split=val", "data.workers=0", "train.global_batch_size=6", "train.micro_batch_size=2",
        "runtime.compile=false",
    )  # fmt: skip
    result = run("scripts/train.py", file, f"data.path={imagenet}", *small, "--dry-run", "--output", tmp_path / "run")
    assert "updates" in result.stdout
    assert not (tmp_path / "run").exists()
    assert "not yet run" in file.read_text()
