"""The grid of the transfer study, its runs and its page."""

import dataclasses
import json
import re

import pytest
import torch
from pictures import draw_folder
from runs import ROOT, invoke

from affnorm_zoo.cli.study import study
from affnorm_zoo.studies.transfer_grid import (
    RUNS,
    TUNING_SEED,
    Task,
    TransferConfig,
    Trial,
    best_rate,
    load_transfer_config,
    read_runs,
    trials,
)
from affnorm_zoo.studies.transfer_report import Cell, difference, write_transfer

CONFIG = ROOT / "configs/studies/transfer.yaml"
TINY = """
tasks:
  cifar100:
    source: resnet20_cifar_batchnorm
    image_size: 16
    num_classes: 3
    val_split: test
    num_seen: 10
    num_pool: 12
    num_held_out: 6
    num_test: 0
    head_c: 1.0
batch_sizes: [4]
methods: [batchnorm, folded]
rates: [1.0e-4, 1.0e-3]
weight_decay: 0.05
seeds: 2
num_fit: 8
"""


def task(**changes):
    values = dict(source="resnet20_cifar_batchnorm", image_size=32, num_classes=10, val_split="val", num_seen=8,
                  num_pool=8, num_held_out=8, num_test=8, head_c=1.0)  # fmt: skip
    return Task(**values | changes)


def grid():
    return TransferConfig(
        tasks={"one": task(), "two": task()}, batch_sizes=(4, 32), methods=("batchnorm", "folded", "frozen"),
        rates=(1e-4, 1e-3, 1e-2), weight_decay=0.0, seeds=3, num_fit=8,
    )  # fmt: skip


def complete(config, steps=10**6):
    """Runs as they would be made one after the other, with held-out accuracies of any values."""
    generator, runs = torch.Generator().manual_seed(0), {}
    for _ in range(steps):
        trial = next((trial for trial in trials(config, runs) if trial not in runs), None)
        if trial is None:
            break
        runs[trial] = {"held_out": torch.rand((), generator=generator).item(), "test": 0.5}
    return runs


def test_each_cell_has_one_run_per_rate_and_its_seeds_at_the_best_one():
    config = grid()
    runs = complete(config)
    assert len(runs) == 2 * 2 * 3 * (3 + 3)
    for trial in runs:
        if trial.is_final:
            assert trial.rate == best_rate(config, runs, trial.task, trial.batch_size, trial.method)
            rivals = [runs[dataclasses.replace(trial, rate=rate, seed=TUNING_SEED)] for rate in config.rates]
            best = runs[dataclasses.replace(trial, seed=TUNING_SEED)]
            assert best["held_out"] == max(rival["held_out"] for rival in rivals)


def test_a_cut_leaves_methods_of_a_task_with_equally_many_runs():
    config = grid()
    for steps in range(1, 60, 7):
        made = complete(config, steps)
        for size in config.batch_sizes:
            for name in config.tasks:
                counts = [
                    sum((trial.task, trial.batch_size, trial.method) == (name, size, method) for trial in made)
                    for method in config.methods
                ]
                assert max(counts) - min(counts) <= 1


def test_a_study_keeps_finished_runs_and_resumes(tmp_path):
    draw_folder(tmp_path / "data", splits=("train", "test"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ("transfer", "--cifar100", tmp_path / "data", "--config", tmp_path / "tiny.yaml",
                 "--output", tmp_path / "out")  # fmt: skip
    threads = torch.get_num_threads()
    try:
        assert invoke(study, *arguments).exit_code == 0
        file = tmp_path / "out" / RUNS
        lines = file.read_text().splitlines()
        assert len(lines) == 2 * (2 + 2)
        file.write_text("\n".join(lines[:-2]) + "\n")
        assert invoke(study, *arguments).exit_code == 0
    finally:
        torch.set_num_threads(threads)
    again = file.read_text().splitlines()
    assert again[:-2] == lines[:-2]
    for old, new in zip(lines[-2:], again[-2:], strict=True):  # the same run gives the same result
        old, new = json.loads(old), json.loads(new)
        assert old | {"seconds": 0} == new | {"seconds": 0}
    for result in map(json.loads, lines):
        assert ("test" in result) == (result["seed"] != TUNING_SEED)


def test_differences_are_paired_by_seed():
    ours, theirs = Cell({}, None, {1: 0.5, 2: 0.7, 3: 0.9}), Cell({}, None, {2: 0.6, 3: 0.8, 4: 0.1})
    found = difference(ours, theirs)
    assert found.points == pytest.approx(10)
    assert found.num_pairs == 2
    assert str(difference(ours, Cell({}, None, {1: 0.6}))) == "-10.0 (one run)"
    assert difference(ours, Cell({}, None, {})) is None


def test_a_task_must_have_enough_images_and_classes():
    with pytest.raises(ValueError, match="num_seen"):
        task(num_seen=9)
    with pytest.raises(ValueError, match="num_classes"):
        task(num_classes=2)


def test_the_readme_quotes_the_pages():
    readme, page, conversion = (
        ROOT.joinpath(name).read_text() for name in ("README.md", "docs/transfer.md", "docs/conversion.md")
    )
    quoted = re.search(
        r"keeps\s(\S+) of its (\S+) % at κ = 4√n.* at κ = 4√n it reaches (\S+) %, at κ = √n (\S+) %\..*"
        r"frozen batch norms it reaches (\S+) %.* in training mode it reaches (\S+) %\.",
        readme, re.DOTALL,
    )  # fmt: skip
    section = page.split("## imagenette, batch size 4")[1]
    means = [
        re.search(rf"^\| `{method}` .*? (\S+) ± ", section, re.MULTILINE).group(1)
        for method in ("patchnorm4", "patchnorm", "frozen", "batchnorm")
    ]
    kept = re.search(r"\| 4√n \| one shot, .*? \| (\S+) ± ", conversion).group(1)
    source = re.search(r"has (\S+) % of the 10,000 test images", conversion).group(1)
    assert quoted.groups() == (f"{float(kept):.1f}", f"{float(source):.1f}", *means)


def test_the_page_is_written_from_the_runs(tmp_path):
    write_transfer(load_transfer_config(CONFIG), ROOT / "docs/transfer", tmp_path / "transfer.md")
    assert (tmp_path / "transfer.md").read_text() == (ROOT / "docs/transfer.md").read_text()


def test_every_run_belongs_to_the_config():
    config = load_transfer_config(CONFIG)
    runs = read_runs(ROOT / "docs/transfer")
    assert runs
    assert set(runs) <= set(trials(config, runs))
    assert all(isinstance(trial, Trial) for trial in runs)
