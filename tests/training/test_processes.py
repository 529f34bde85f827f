"""Launchers: what they silently get wrong is an error before anything is written."""

import logging

import pytest
import torch
from accelerate.state import AcceleratorState
from runs import ROOT, TINY, metrics, run, train_here
from yaml import safe_load

from affnorm_zoo.config import RuntimeConfig
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import processes
from affnorm_zoo.training.processes import build_accelerator, requested_processes

LAUNCH = ["python", "-m", "accelerate.commands.launch"]
CONFIGS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def fresh():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["bash"], None),
        (["python", "train.py", "--num_processes", "3"], None),
        ([*LAUNCH, "train.py"], None),
        ([*LAUNCH, "--num_processes", "4", "train.py"], 4),
        ([*LAUNCH, "--num-processes=2", "train.py"], 2),
        (["/usr/bin/python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "t.py"], 2),
    ],
)
def test_what_a_launcher_was_asked_for(command, expected):
    assert requested_processes(command) == expected


def test_also_by_its_config_file(tmp_path):
    (tmp_path / "two.yaml").write_text("num_processes: 2\n")
    assert requested_processes([*LAUNCH, "--config_file", str(tmp_path / "two.yaml"), "t.py"]) == 2
    assert requested_processes([*LAUNCH, "--config_file", "none.yaml", "t.py"]) is None


def test_a_launcher_that_starts_one_process_of_two_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "parent_command", lambda: [*LAUNCH, "--cpu", "--num_processes", "2", "train.py"])
    with pytest.raises(UsageError, match="was asked for 2 processes and started one"):
        build_accelerator(RuntimeConfig(device="cpu"))


@pytest.mark.slow
def test_a_real_one_is_seen_through(tmp_path):
    result = run(
        "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "scripts/train.py", *TINY, "--output",
        tmp_path / "run", ok=False,
    )  # fmt: skip
    assert "was asked for 2 processes and started one" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "config", "message"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {}, "gradient accumulation is set by train.micro_batch_size"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"precision": "bf16"}, "set only one of them"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "asks for FSDP, but accelerate has started NO"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            {},
            r"DeepSpeed is not installed|asks for DeepSpeed, but accelerate has started NO",
        ),
        ({}, {"precision": "fp16"}, "fp16"),
    ],
    ids=["accumulation", "precision", "fsdp", "deepspeed", "fp16 on a CPU"],
)
def test_contradictions_are_errors(variables, config, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        build_accelerator(RuntimeConfig(device="cpu", **config))


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch):
    build_accelerator(RuntimeConfig(device="cpu"))  # alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="launcher started 2 processes, but accelerate sees 1"):
        build_accelerator(RuntimeConfig(device="cpu"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_fastest_algorithm_is_measured_unless_results_must_repeat(deterministic, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)  # of the whole process
    build_accelerator(RuntimeConfig(device="cpu", deterministic=deterministic))
    assert torch.backends.cudnn.benchmark is not deterministic


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_launch_configs_name_what_accelerate_reads(file):
    from accelerate.commands.config.config_args import ClusterConfig

    content = safe_load(file.read_text())
    assert {"compute_environment", "distributed_type", "num_processes"} <= content.keys()
    ClusterConfig.from_yaml_file(str(file))


@pytest.mark.slow
def test_the_two_process_config_launches(tmp_path):
    run(
        "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu2.yaml", "scripts/train.py", *TINY,
        "train.max_updates=2", "--output", tmp_path,
    )  # fmt: skip
    assert len(metrics(tmp_path, "update")) == 2
    assert safe_load((tmp_path / "run.json").read_text())["facts"]["num_processes"] == 2


def test_trackers_are_named_when_missing_and_cannot_end_a_run(tmp_path, monkeypatch, caplog):
    with pytest.raises(UsageError, match=r"runtime.trackers: 'tensorbord' is not known: choose from .*tensorboard"):
        train_here(tmp_path / "run", "runtime.trackers=[tensorbord]")
    with pytest.raises(UsageError, match=r"runtime.trackers: wandb is not installed: pip install wandb"):
        train_here(tmp_path / "run", "runtime.trackers=[wandb]")
    assert not (tmp_path / "run").exists()

    from accelerate.tracking import TensorBoardTracker

    def log(self, values, step=None, **kwargs):
        raise ConnectionError("no route to the tracker")

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    with caplog.at_level(logging.WARNING):
        train_here(tmp_path / "run", "runtime.trackers=[tensorboard]", "model.kwargs.drop_rate=0.1")
    assert "a tracker failed at update 4: no route to the tracker" in caplog.text
    assert len(metrics(tmp_path / "run", "update")) == 10


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_here(tmp_path, "runtime.trackers=[tensorboard]", "data.mean=[0.3]")
    events = EventAccumulator(str(tmp_path / "affnorm_zoo")).Reload()
    assert [event.value for event in events.Scalars("val/top1")] == pytest.approx(
        [record["val"]["top1"] for record in metrics(tmp_path)]
    )
    assert events.Scalars("loss")
