"""What a step finds is written row by row; what must be carried is one folder; what comes back is few files."""

import json
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import pytest
import torch
from pictures import draw_folder
from runs import ROOT, invoke

from affnorm_zoo.benchmarks.gpu_evidence import carry, trainings
from affnorm_zoo.benchmarks.gpu_evidence.carry import find_data, join_volumes, pack, write_volumes
from affnorm_zoo.benchmarks.gpu_evidence.record import DEVICE_LOST, StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.sizes import REHEARSAL
from affnorm_zoo.benchmarks.gpu_evidence.steps import RESNET18, RESNET50, STEPS, VIT_SMALL
from affnorm_zoo.benchmarks.gpu_evidence.trainings import train_sweep
from affnorm_zoo.benchmarks.networks import Bench
from affnorm_zoo.cli.gpu_evidence import gpu_evidence
from affnorm_zoo.errors import UsageError
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


def test_what_is_packed_is_found_again_and_only_once_unpacked(tmp_path):
    pictures = draw_folder(tmp_path / "pictures", per_class=2)
    mib = pack(tmp_path / "carried", {"cifar10": pictures}, wheels=())
    archive = tmp_path / "carried/cifar10.tar.xz"
    first = archive.read_bytes()
    assert mib == pytest.approx(sum(f.stat().st_size for f in (tmp_path / "carried").rglob("*.*")) / 2**20)
    for file in pictures.rglob("*.png"):
        file.touch()
    pack(tmp_path / "carried", {"cifar10": pictures}, wheels=())
    assert archive.read_bytes() == first  # the same pictures, the same archive
    unpacked = find_data(tmp_path / "carried", tmp_path / "data", "cifar10")
    for file in pictures.rglob("*.png"):
        assert (unpacked / file.relative_to(pictures)).read_bytes() == file.read_bytes()
    archive.unlink()
    assert find_data(tmp_path / "carried", tmp_path / "data", "cifar10") == unpacked
    with pytest.raises(UsageError, match=r"has no imagenette\.tar\.xz"):
        find_data(tmp_path / "carried", tmp_path / "data", "imagenette")


def test_an_archive_that_holds_a_folder_is_opened_at_its_splits(tmp_path):
    pictures = draw_folder(tmp_path / "deep/cifar10", per_class=1)
    with tarfile.open(tmp_path / "given.tar.xz", "w:xz") as tar:
        tar.add(pictures, "cifar10")
    pack(tmp_path / "carried", {"cifar10": tmp_path / "given.tar.xz"}, wheels=())
    assert find_data(tmp_path / "carried", tmp_path / "data", "cifar10") == tmp_path / "data/cifar10/cifar10"


def test_the_carried_command_installs_the_wheels_and_passes_its_arguments_on(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "_download", lambda names, folder: (folder / f"{names[0]}.whl").write_bytes(b"wheel"))
    pack(tmp_path / "carried", {}, wheels=("timm",))
    assert [f.name.partition("==")[0] for f in (tmp_path / "carried/wheels").iterdir()] == ["timm"]
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3").write_text('#!/bin/sh\necho "$PYTHONPATH | $*" >> "$CALLS"\n')
    (tools / "python3").chmod(0o755)
    variables = {"PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "SITE": "/site"}
    subprocess.run(["bash", tmp_path / "carried/run.sh", "--budget", "9"], env=variables, cwd=tmp_path, check=True)
    install, call = (tmp_path / "calls").read_text().splitlines()
    assert "--no-index" in install
    assert install.endswith(".whl")
    assert call == f"/site:{tmp_path} | scripts/gpu_evidence.py --carried {tmp_path / 'carried'} --budget 9"


def test_what_comes_back_is_in_files_of_limited_size_without_checkpoints_and_data(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "VOLUME_BYTES", 20_000)
    output = tmp_path / "output"
    contents = {
        "one.json": 10, "one.log": 5000, "runs/a/model.safetensors": 30_000, "runs/b/model.safetensors": 130_000,
        "runs/a/checkpoints/update_1/model.safetensors": 10, "data/cifar10/x.json": 10, "runs/a/export/config.json": 9,
    }  # fmt: skip
    for name, size in contents.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(bytes(size))
    write_volumes(output, tmp_path / "volumes")
    sizes = [file.stat().st_size for file in sorted((tmp_path / "volumes").iterdir())]
    assert max(sizes) <= 20_000
    assert 1 < len(sizes) <= carry.MOST_VOLUMES
    join_volumes(tmp_path / "volumes", tmp_path / "back")
    back = {str(file.relative_to(tmp_path / "back")) for file in (tmp_path / "back").rglob("*") if file.is_file()}
    assert back == {"one.json", "one.log", "runs/a/model.safetensors"}  # the larger weights find no room
    with pytest.raises(UsageError, match="has no evidence"):
        join_volumes(tmp_path / "back", tmp_path / "again")


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
    assert names.index("kernel_check") < names.index("resnet50") < names.index("train_resnet18_cifar")
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
