"""The page and the README quote what the benchmark measured."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import invoke

from affnorm_zoo.benchmarks.networks import OPAQUE, Bench
from affnorm_zoo.benchmarks.report import write_report
from affnorm_zoo.cli.benchmark import CONTENDERS, benchmark

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_report_writes(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    for file in (ROOT / "docs/benchmarks").glob("*.json"):
        (tmp_path / "benchmarks" / file.name).write_bytes(file.read_bytes())
    write_report(tmp_path / "benchmarks", tmp_path / "performance.md")
    assert (tmp_path / "performance.md").read_text() == (ROOT / "docs/performance.md").read_text()


def test_every_contender_is_measured_and_gets_its_line(tmp_path):
    output = tmp_path / "one.json"
    small = ("--model", "resnet18", "--img-size", 32, "--batch-size", 2, "--rounds", 1, "--no-compile")
    assert invoke(benchmark, "measure", *small, "--output", output).exit_code == 0
    found = json.loads(output.read_text())["rows"]
    contenders = CONTENDERS["resnet18"]
    assert [row["normalizer"] for row in found] == [*contenders, "batchnorm, folded", *contenders]
    write_report(tmp_path, tmp_path / "performance.md")
    page = (tmp_path / "performance.md").read_text()
    for row in found:
        milliseconds = row[f"{row['mode']}_step_time"]
        assert f"| {row['normalizer']} | {milliseconds:.1f} |" in page


def test_what_is_measured_outlives_what_comes_after(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "train", lambda *_: [{"normalizer": "patchnorm"}])
    monkeypatch.setattr(Bench, "infer", stop)
    output = tmp_path / "new/one.json"
    assert invoke(benchmark, "measure", "--model", "resnet18", "--output", output).exit_code == 1
    assert json.loads(output.read_text())["rows"] == [{"normalizer": "patchnorm"}]


def rows(**wanted):
    found = json.loads((ROOT / "docs/benchmarks/cpu.json").read_text())["rows"]
    (row,) = (row for row in found if wanted.items() <= row.items())
    return row


@pytest.mark.parametrize("model", ["resnet50", "resnet18", "vit_small_patch16_224"])
def test_the_readme_quotes_the_measured_ratios(model):
    line = next(
        line for line in (ROOT / "README.md").read_text().splitlines() if re.match(rf"\| `{model}_\w+` /", line)
    )
    name, saved, eager, compiled = (cell.strip() for cell in line.strip("|").split("|"))
    normalizer = name.split("`")[1].removeprefix(model + "_")
    measured = {c: rows(model=model, normalizer=normalizer, mode="train", compiled=c) for c in (False, True)}
    assert saved == f"{measured[False]['saved_ratio']:.3f}"
    assert (eager, compiled) == (f"{measured[False]['ratio']:.2f}", f"{measured[True]['ratio']:.2f}")


def test_the_readme_quotes_traced_and_opaque_layers():
    measured = json.loads((ROOT / "docs/benchmarks/cpu_opaque.json").read_text())["rows"]
    traced, opaque = (row["ratio"] for row in measured if row["normalizer"] != "batchnorm")
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"ResNet-50 took {traced:.2f} of batch norm's, and {opaque:.2f} with layers" in text


def test_products_get_a_table_of_their_own(tmp_path):
    product = {"shape": [3136, 512, 2048], "passes_seconds": 5e-5, "kernel_seconds": 4e-5, "tile": [128, 64, 32, 4, 2]}
    result = {"command": "measure", "environment": {"device": "one"}, "rows": [], "products": [product]}
    (tmp_path / "gpu.json").write_text(json.dumps(result))
    write_report(tmp_path, tmp_path / "performance.md")
    assert "| 3136 | 512 | 2048 | 50.0 | 40.0 | 0.800 | 128×64×32 |\n" in (tmp_path / "performance.md").read_text()


# the compiler itself looks at the gradients of what enters a graph in the middle of the network
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_what_the_compiler_sees_into_or_not_saves_less(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # traces, compiles nothing
    bench = Bench("resnet18", 2, 32, torch.device("cpu"), torch.float32, rounds=2)
    rows = bench.train(["batchnorm", "patchnorm", "patchnorm" + OPAQUE], compiled=True)
    standard, traced, opaque = rows
    assert standard["ratio"] == standard["saved_ratio"] == 1.0
    assert traced["saved_ratio"] < opaque["saved_ratio"] < 0.7  # between the graphs stand tensors that one would fuse
    assert all(row["n"] == 2 and row["step_time_min"] <= row["train_step_time"] for row in rows)
    assert opaque["param_count"] == traced["param_count"]
