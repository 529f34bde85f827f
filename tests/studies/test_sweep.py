"""Every arm gets the same, and what has run is not run again."""

import json
import subprocess
import sys

import pytest
from runs import ROOT, TINY

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import open_source
from affnorm_zoo.errors import UsageError
from affnorm_zoo.studies import sweep
from affnorm_zoo.studies.sweep import (
    SweepConfig,
    Trial,
    best_point,
    final_trials,
    load_sweep,
    run_sweep,
    tuning_trials,
)
from affnorm_zoo.studies.sweep_report import sweep_table
from affnorm_zoo.training import NonFiniteError

SETTINGS = dict(
    arms={"batchnorm": ["model.name=resnet20_cifar_batchnorm"], "patchnorm": ["model.name=resnet20_cifar_patchnorm"]},
    baseline="batchnorm",
    shared=(*TINY[1:], "train.max_updates=2"),
    points=({"optim.lr": 1e-3}, {"optim.lr": 3e-3, "optim.weight_decay": 0.0}),
    hold_out=237,
    seeds=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(SweepConfig(**SETTINGS), folder)
    return folder


def results(folder):
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results").iterdir()}


def test_all_arms_have_the_same_budget(folder):
    config, found = SweepConfig(**SETTINGS), results(folder)
    for arm in config.arms:
        own = [result for result in found.values() if result["arm"] == arm]
        tuned = [result for result in own if not result["is_final"]]
        assert sorted(result["point"]["optim.lr"] for result in tuned) == [1e-3, 3e-3]
        best = best_point(config, arm, folder)
        (chosen,) = (result for result in tuned if result["point"] == best)
        assert chosen["top1"] == max(result["top1"] for result in tuned)
        final = [result for result in own if result["is_final"]]
        assert all(result["point"] == best for result in final)
        assert sorted(result["seed"] for result in final) == [1, 2]


def test_tuning_is_scored_on_the_images_held_out(folder):
    for result in results(folder).values():
        assert result["num_images"] == (360 if result["is_final"] else 237)


def test_of_the_tuning_runs_only_the_results_stay(folder):
    runs = {path.name for path in (folder / "runs").iterdir()}
    assert runs == {name for name, result in results(folder).items() if result["is_final"]}


def test_nothing_is_run_twice(folder, monkeypatch):
    trained = []
    monkeypatch.setattr(sweep, "train", lambda config, *_, **__: trained.append(config))
    run_sweep(SweepConfig(**SETTINGS), folder)
    assert trained == []


def test_a_run_that_measures_its_divergence_keeps_attentions_factors(tmp_path):
    small = ("model.kwargs.depth=1", "model.kwargs.embed_dim=24", "model.kwargs.img_size=8")
    options = ("train.max_updates=2", "runtime.divergence_updates=2", "runtime.divergence_images=2")
    arms = {name: [f"model.name=vit_nano_patch4_32_{name}"] for name in ("layernorm", "affinelike")}
    config = SweepConfig(arms=arms, baseline="layernorm", shared=(*TINY[2:], *small, *options), seeds=1)
    run_sweep(config, tmp_path)
    for name, result in results(tmp_path).items():
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        measured = [record for record in map(json.loads, lines) if record["kind"] == "divergence"]
        assert [record["update"] for record in measured] == [0, 2]
        assert result["attention"] == {"first": measured[0]["attention"], "last": measured[1]["attention"]}
        assert [row["kind"] for row in result["attention"]["last"]] == ["mixed values", "logits"]


@pytest.mark.slow
def test_processes_share_the_runs(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "arms: {a: []}\nbaseline: a\nseeds: 4\n"
        "shared: [train.max_updates=2, train.epochs=1, optim.warmup_epochs=0.5, runtime.device=cpu]\n"
    )
    command = [sys.executable, ROOT / "scripts/sweep.py", file, "--output", tmp_path / "out"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(result["seed"] for result in results(tmp_path / "out").values()) == [1, 2, 3, 4]
    logs, tables = zip(*(stdout.split("| method |") for stdout, _ in outputs), strict=True)
    assert sum(log.count("epoch   1/1") for log in logs) == 4  # each was trained once
    assert tables[0] == tables[1]


def test_a_run_that_diverges_scores_nothing(tmp_path, monkeypatch):
    def diverge(config, *_, **__):
        raise NonFiniteError("update 3")

    monkeypatch.setattr(sweep, "train", diverge)
    config = SweepConfig(**SETTINGS)
    run_sweep(config, tmp_path)
    assert {result["top1"] for result in results(tmp_path).values()} == {0.0}
    table = sweep_table(config, tmp_path)
    assert "| patchnorm | 0.0 ± 0.0 | 2 | +0.00 points (p = 1) |" in table
    assert "training loss" not in table  # no run ended with one


def test_the_table_is_that_of_the_runs(folder, tmp_path):
    config, found = SweepConfig(**SETTINGS), results(folder)
    table = sweep_table(config, folder)
    for arm in config.arms:
        top1 = [result["top1"] for result in found.values() if result["arm"] == arm and result["is_final"]]
        mean, deviation = sum(top1) / 2, abs(top1[0] - top1[1]) / 2**0.5
        assert f"| {arm} | {100 * mean:.1f} ± {100 * deviation:.1f} | 2 |" in table
    assert sweep_table(config, tmp_path).count("not run") == 2


def test_one_point_needs_no_tuning(tmp_path):
    config = SweepConfig(**{**SETTINGS, "points": ({"optim.lr": 1e-3},)})
    assert tuning_trials(config) == []
    assert [trial.seed for trial in final_trials(config, "patchnorm", tmp_path)] == [1, 2]


def test_an_arm_counts_more_than_what_is_shared():
    arms = {"plain": [], "other": ["optim.lr=2e-3"]}
    config = SweepConfig(arms=arms, baseline="plain", shared=("optim.lr=1e-3",))
    rates = {arm: sweep.config_of(config, Trial(arm=arm, point={}, seed=1, is_final=True)).optim.lr for arm in arms}
    assert rates == {"plain": 1e-3, "other": 2e-3}


def test_a_wrong_arm_is_told_before_anything_runs(tmp_path):
    arms = {**SETTINGS["arms"], "other": ["model.nam=x"]}
    with pytest.raises(UsageError, match=r"did you mean 'model\.name'"):
        run_sweep(SweepConfig(**{**SETTINGS, "arms": arms, "points": ({},)}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_tuning_runs_hold_out_images_and_an_override_decides_how_many():
    config = load_sweep(ROOT / "configs/sweeps/digits.yaml")
    tuning, final = (
        Trial(arm=config.baseline, point=config.points[0], seed=1, is_final=last) for last in (False, True)
    )
    assert sweep.config_of(config, tuning).data.hold_out == config.hold_out > 0
    assert sweep.config_of(config, final).data.hold_out == 0
    assert sweep.config_of(config, tuning, ("data.hold_out=7",)).data.hold_out == 7


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_sweeps_make_valid_runs(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_sweep(file)
    first = next(iter(config.arms))
    for arm, point in [(arm, config.points[0]) for arm in config.arms] + [(first, point) for point in config.points]:
        sweep.config_of(config, Trial(arm=arm, point=point, seed=1, is_final=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: {a: []}\nbaseline: b", "baseline must be one of a"),
        ("arms: {}\nbaseline: b", "arms must name"),
        ("arms: {a: []}\nbaseline: a\nseed: 3", "seed"),
        ("arms: {a: []}\nbaseline: a\npoints: []", "at least one"),
        ("arms: [", "sweep.yaml"),
    ],
)
def test_a_wrong_sweep_is_told(text, message, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_sweep(tmp_path / "sweep.yaml")


def test_held_out_images_are_not_trained_on():
    whole, divided = open_source(DataConfig()), open_source(DataConfig(hold_out=300))
    assert (divided.num_train, divided.num_val) == (1137, 300)
    parts = {name: [divided_part[i][0].tobytes() for i in range(len(divided_part))] for name, divided_part in
             (("train", divided.train), ("val", divided.val))}  # fmt: skip
    everything = [whole.train[i][0].tobytes() for i in range(whole.num_train)]
    assert sorted(parts["train"] + parts["val"]) == sorted(everything)
    divided.train.transform, divided.val.transform = str, repr
    assert isinstance(divided.train[0][0], str)
    assert divided.train.transform is str
    with pytest.raises(UsageError, match="leaves nothing"):
        open_source(DataConfig(hold_out=1437))
