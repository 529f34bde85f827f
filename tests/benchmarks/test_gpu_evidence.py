"""What a step finds is written row by row, and what its trainings find reaches the recipes."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import pytest
import torch
from pictures import draw_folder
from runs import ROOT, invoke

from affnorm_zoo.benchmarks.gpu_evidence import trainings
from affnorm_zoo.benchmarks.gpu_evidence.carry import write_volumes
from affnorm_zoo.benchmarks.gpu_evidence.record import DEVICE_LOST, StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.sizes import REHEARSAL
from affnorm_zoo.benchmarks.gpu_evidence.steps import RESNET18, RESNET50, STEPS, VIT_SMALL
from affnorm_zoo.benchmarks.gpu_evidence.trainings import train_sweep
from affnorm_zoo.benchmarks.networks import Bench
from affnorm_zoo.cli.gpu_evidence import gpu_evidence
from affnorm_zoo.studies.sweep import load_sweep

CPU = torch.device("cpu")


def record_in(folder, name="step"):
    return StepRecord(folder / f"{name}.json", CPU)


def fail():
    raise AssertionError("wrong\nby much")


def test_a_row_is_written_at_once_and_a_failure_ends_nothing(tmp_path):
    record = record_in(tmp_path)
    read = lambda: json.loads(record.path.read_text())  # noqa: E731
    assert record.row("one", lambda: {"value": 1}) == {"value": 1}
    assert read()["rows"]["one"]["results"] == {"value": 1}
    assert record.row("two", fail) is None
    assert read()["rows"]["two"]["error"] == "AssertionError: wrong"
    assert record.row("three", lambda: 3) == 3
    assert read()["status"] == "running"
    assert record.finish() == read()["status"] == "failed"
    assert read()["environment"]["torch"] == metadata.version("torch")


def test_a_row_of_an_earlier_try_is_not_measured_again(tmp_path):
    record_in(tmp_path).row("one", lambda: 1)
    record = record_in(tmp_path)
    assert record.row("one", fail) == 1
    assert record.finish() == "ok"


@pytest.mark.parametrize("results", [{"ok": False}, [{"ok": True}, {"ok": False}]], ids=str)
def test_a_result_that_is_not_ok_fails_the_step(tmp_path, results):
    record = record_in(tmp_path)
    record.row("one", lambda: results)
    assert record.finish() == "failed"


def test_a_process_whose_gpu_is_lost_leaves_the_other_rows_to_the_next(tmp_path, monkeypatch):
    record = record_in(tmp_path)
    record.device = torch.device("cuda")

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    record.row("one", fail)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit) as end:
        record.row("two", fail)
    assert end.value.code == DEVICE_LOST
    assert set(record_in(tmp_path).rows) == {"one", "two"}


SWEEP = """
arms: {{one: [], two: [optim.lr=0.01]}}
baseline: one
shared: [{config}, data.image_size=8, train.epochs=1, train.max_updates=1]
seeds: 2
"""


@pytest.fixture
def sweep(tmp_path):
    file = tmp_path / "little.yaml"
    file.write_text(SWEEP.format(config=ROOT / "configs/cifar10/resnet20_cifar.yaml"))
    pictures = draw_folder(tmp_path / "pictures", splits=("train", "test"), per_class=4)
    packed = tmp_path / "data/cifar10.safetensors"
    output = tmp_path / "output/sweeps/little"
    output.mkdir(parents=True)
    return lambda record: train_sweep(record, REHEARSAL, file, packed, lambda: pictures, output)


@pytest.mark.slow
def test_the_results_of_a_sweep_reach_the_recipes(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    record = record_in(tmp_path / "output")
    sweep(record)
    assert record.finish() == "ok", record.rows
    assert record.rows["processes"]["results"]["exit_codes"] == [0]
    write_volumes(tmp_path / "output", tmp_path / "volumes")
    arguments = ["adopt", tmp_path / "volumes", "--output", tmp_path / "back", "--recipes", tmp_path / "recipes"]
    assert invoke(gpu_evidence, *arguments).exit_code == 0
    for arm in ("one", "two"):
        result = json.loads((tmp_path / f"recipes/little/results/{arm}_s1_final.json").read_text())
        assert record.rows[arm]["results"]["top1"] == [result["top1"]]


def test_steps_side_by_side_unpack_and_pack_their_data_once(tmp_path):
    file = tmp_path / "little.yaml"
    file.write_text(SWEEP.format(config=ROOT / "configs/cifar10/resnet20_cifar.yaml"))
    pictures = draw_folder(tmp_path / "pictures", splits=("train", "test"), per_class=4)
    asked = []

    def find_data():
        asked.append(time.sleep(0.5))
        return pictures

    packed = tmp_path / "data/cifar10.safetensors"
    with ThreadPoolExecutor(2) as pool:
        names = pool.map(lambda _: trainings._pack(load_sweep(file), REHEARSAL, packed, find_data), range(2))
    assert list(names) == ["cifar10.safetensors"] * 2
    assert len(asked) == 1


def test_a_sweep_whose_processes_fail_fails_its_step(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no scripts/sweep.py
    record = record_in(tmp_path / "output")
    sweep(record)
    assert record.finish() == "failed"
    assert record.rows["one"]["results"] == {"ok": False, "top1": []}


def test_the_steps_are_named_once_and_expected_to_end_before_their_limit():
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    assert all(0 < step.seconds < step.limit for step in STEPS)
    assert names.index("kernel_check") < names.index("resnet50") < names.index("train_cifar10_resnet18_e15")
    times = [step.name for step in STEPS if not step.name.startswith(("kernel_check", "kernel_tests", "compile_"))]
    assert times == [step.name for step in STEPS if step.alone]


def test_what_is_timed_compiled_was_compiled_before():
    names = [step.name for step in STEPS]
    for network in (RESNET50, RESNET18, VIT_SMALL):
        assert names.index(f"compile_{network[0]}") < names.index(network[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so():
    result = invoke(gpu_evidence)
    assert result.exit_code == 2
    assert result.output == "error: torch sees no GPU here: --rehearse runs every step in miniature on the CPU\n"


@pytest.mark.slow
def test_a_rehearsed_step_runs_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "scripts/gpu_evidence.py", "--rehearse", "--output", tmp_path, "--only", "ceilings"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("ceilings ")
    rows = json.loads((tmp_path / "ceilings.json").read_text())["rows"]
    assert rows["copy"]["results"]["gb_per_second"] > 0


def test_memory_is_measured_without_the_other_networks(monkeypatch):
    """As if each model took a million bytes and stayed on the GPU: the second one's peak must not hold the first."""
    allocated = {"now": 0}

    def build(bench, name):
        allocated["now"] += 2**20
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 1000))

    monkeypatch.setattr(Bench, "model", build)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: allocated["now"] + 2**19)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(Bench, "synchronize", lambda bench: None)
    bench = Bench("resnet18", 2, 8, CPU, "float32", rounds=1)
    bench.device = torch.device("cuda")
    monkeypatch.setattr(Bench, "autocast", lambda bench: torch.autocast("cpu", enabled=False))
    allocated["now"] = sum(t.numel() * t.element_size() for t in (bench.images, bench.labels))
    batch_mib = allocated["now"] / 2**20
    for row in bench.train(["batchnorm", "patchnorm"], compiled=False):
        assert row["peak_mib"] == pytest.approx(1.5 + batch_mib)
