"""The page and the README quote what the benchmark measured."""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
import timm
import torch
from runs import invoke
from torch import nn

from affnorm_zoo import cli
from affnorm_zoo.benchmarks.bars import cpu_bars
from affnorm_zoo.benchmarks.networks import OPAQUE, Bench, build
from affnorm_zoo.benchmarks.report import write_report
from affnorm_zoo.benchmarks.rivals import RIVALS
from affnorm_zoo.benchmarks.small_layers import LAYERS, small_layers
from affnorm_zoo.benchmarks.turns import pool
from affnorm_zoo.cli.benchmark import CONTENDERS, FAMILIES, benchmark
from affnorm_zoo.factory import bound_layers

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_report_writes(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    for file in (*(ROOT / "docs/benchmarks").rglob("*.json"), ROOT / "docs/benchmarks/gpu/note.txt"):
        copy = tmp_path / file.relative_to(ROOT / "docs")
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    write_report(tmp_path / "benchmarks", tmp_path / "performance.md", tmp_path / "README.md")
    assert (tmp_path / "performance.md").read_text() == (ROOT / "docs/performance.md").read_text()
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_every_contender_is_measured_and_gets_its_line(tmp_path):
    output = tmp_path / "one.json"
    small = ("--model", "resnet18", "--img-size", 32, "--batch-size", 2, "--rounds", 1, "--no-compile")
    assert invoke(benchmark, "measure", *small, "--output", output).exit_code == 0
    found = json.loads(output.read_text())["rows"]
    contenders = CONTENDERS["resnet18"]
    inferred = [name for name in contenders if name not in RIVALS]
    assert [row["normalizer"] for row in found] == [*contenders, "batchnorm, folded", *inferred]
    write_report(tmp_path, tmp_path / "performance.md")
    page = (tmp_path / "performance.md").read_text()
    for row in found:
        milliseconds = row[f"{row['mode']}_step_time"]
        assert f"| {row['normalizer']} | {milliseconds:.1f} |" in page


def test_turns_may_be_split_over_processes(tmp_path):
    output = tmp_path / "one.json"
    small = ("--model", "conv1x1", "--batch-size", 2, "--rounds", 4, "--processes", 2)
    assert invoke(benchmark, "measure", *small, "--output", output).exit_code == 0
    for row in json.loads(output.read_text())["rows"]:
        assert row["n"] == len(row["step_times"]) == 4
        assert row["train_step_time"] == statistics.median(row["step_times"])
    result = invoke(benchmark, "measure", *small, "--rounds", 3, "--output", output)
    assert result.exit_code == 2
    assert "--rounds must be a multiple of --processes, got 3 and 2" in result.output


def test_a_limit_on_instructions_is_on_record(tmp_path, monkeypatch):
    output = tmp_path / "one.json"
    small = ("--model", "conv1x1", "--batch-size", 2, "--rounds", 1)
    for limit in (None, "AVX2"):
        if limit:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert invoke(benchmark, "measure", *small, "--output", output).exit_code == 0
        assert json.loads(output.read_text())["environment"].get("ONEDNN_MAX_CPU_ISA") == limit


def test_pooled_ratios_are_those_of_all_turns():
    def table(*times):
        return [{"normalizer": str(i), "train_batch_size": 2, "step_times": list(t)} for i, t in enumerate(times)]

    first, second = pool("train", [table([2.0, 3.0], [3.0, 2.5]), table([5.0], [4.0])])
    assert first["step_times"] == [2.0, 3.0, 5.0]
    assert (second["n"], second["ratio"], second["ratio_of_minima"]) == (3, 3.0 / 3.0, 2.5 / 2.0)
    assert second["ratio_quartiles"] == statistics.quantiles([1.5, 2.5 / 3, 0.8], n=4)[::2]
    assert second["train_samples_per_sec"] == 2 / 3e-3


def test_a_family_is_measured_against_timms_own_network(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.benchmark, "FAMILIES", {"mobilenetv3_large_100": ["batchnorm", "patchnorm"]})
    output = tmp_path / "families.json"
    small = ("--families", "--img-size", 32, "--batch-size", 2, "--rounds", 1)
    assert invoke(benchmark, "measure", *small, "--output", output).exit_code == 0
    standard, ours = json.loads(output.read_text())["rows"]
    assert (standard["normalizer"], ours["normalizer"]) == ("batchnorm", "patchnorm")
    assert standard["saved_ratio"] == 1.0
    assert ours["saved_ratio"] < 1
    assert not any(row["compiled"] or row["mode"] != "train" for row in (standard, ours))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_first_of_a_family_is_timms_own_and_the_others_the_zoos(architecture):
    standard, *ours = FAMILIES[architecture]
    with torch.device("meta"):
        model = build(architecture, standard)
        assert not list(bound_layers(model))
        assert type(model) is type(timm.create_model(architecture))
    assert all(timm.is_model(f"{architecture}_{normalizer}") for normalizer in ours)


@pytest.mark.parametrize(("name", "size"), LAYERS.items())
def test_small_layers_are_twenty_of_a_kind(name, size):
    standard = small_layers(name, "batchnorm", 10)
    ours = small_layers(name, "patchnorm_ws", 10)
    assert [sum(isinstance(m, kind) for m in standard.modules()) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)] == [
        20, 20, 20
    ]  # fmt: skip
    layers = list(bound_layers(ours))
    assert len(layers) == 20
    assert all(layer.activation == "relu" and tuple(layer.weight.shape[2:]) == (size, size) for layer in layers)


def test_a_requirement_may_be_over_another_row():
    def rows(ours, theirs):
        shared = {"model": "resnet50", "mode": "infer", "compiled": False}
        return {"rows": [
            shared | {"normalizer": "patchnorm", "infer_step_time": ours},
            shared | {"normalizer": "batchnorm", "infer_step_time": theirs},
        ]}  # fmt: skip

    bars = list(cpu_bars({"cpu": rows(105.0, 100.0), "cpu_bf16": rows(3.0, 2.0)}))
    assert [(bar.measure, bar.value, bar.verdict) for bar in bars if bar.value is not None] == [
        ("inference, resnet50_patchnorm / resnet50", 1.05, "met"),
        ("the same, bfloat16", 1.5, "missed"),
    ]
    assert {bar.verdict for bar in bars} == {"met", "missed", "not measured"}


def test_what_is_measured_outlives_what_comes_after(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "train", lambda *_: [{"normalizer": "patchnorm"}])
    monkeypatch.setattr(Bench, "infer", stop)
    output = tmp_path / "new/one.json"
    assert invoke(benchmark, "measure", "--model", "resnet18", "--output", output).exit_code == 1
    assert json.loads(output.read_text())["rows"] == [{"normalizer": "patchnorm"}]


def test_a_table_that_fails_is_recorded_and_the_next_is_measured(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Bench, "train", fail)
    monkeypatch.setattr(Bench, "infer", lambda *_: [{"normalizer": "patchnorm"}])
    output = tmp_path / "one.json"
    result = invoke(benchmark, "measure", "--model", "resnet18", "--no-compile", "--output", output)
    assert result.exit_code == 1
    found = json.loads(output.read_text())
    assert found["rows"] == [{"normalizer": "patchnorm"}]
    assert found["failures"] == ["resnet18, train, eager: RuntimeError: out of memory"]
    assert "resnet18, train, eager: RuntimeError: out of memory" in result.output


def test_the_readme_quotes_the_measured_ratios():
    measured = json.loads((ROOT / "docs/benchmarks/cpu.json").read_text())["rows"]
    quoted = re.findall(
        r"\| `(resnet\d+|vit_\w+?_224)_(\w+)`(.*) / .*?\|(.*)\|(.*)\|(.*)\|", (ROOT / "README.md").read_text()
    )
    assert len(quoted) == 6
    for model, normalizer, option, saved, eager, compiled in quoted:
        wanted = {"model": model, "normalizer": normalizer + option, "mode": "train"}
        found = {row["compiled"]: row for row in measured if wanted.items() <= row.items()}
        assert saved.strip() == f"{found[False]['saved_ratio']:.3f}"
        assert eager.strip() == f"{found[False]['ratio']:.2f}"
        assert compiled.strip() == (f"{found[True]['ratio']:.2f}" if True in found else "")


@pytest.mark.parametrize(("model", "batch_size", "pattern"), [
    ("resnet50", 16, r"`resnet50_patchnorm_ws` takes (\S+) of batch norm's step at batch size 16"),
    ("resnet18", 32, r"`resnet18_patchnorm_ws` (\S+) at 32"),
])  # fmt: skip
def test_the_readme_quotes_larger_batches(model, batch_size, pattern):
    rows = json.loads((ROOT / f"docs/benchmarks/cpu_batch{batch_size}.json").read_text())["rows"]
    wanted = {"model": model, "normalizer": "patchnorm_ws", "mode": "train", "train_batch_size": batch_size}
    (found,) = [row for row in rows if wanted.items() <= row.items()]
    assert re.search(pattern, (ROOT / "README.md").read_text()).group(1) == f"{found['ratio']:.2f}"


NETWORK = {
    "model": "resnet50", "mode": "train", "compiled": True, "precision": "amp_bfloat16", "train_batch_size": 256,
    "train_img_size": 224, "step_time_min": 1.0, "step_time_max": 1.0, "n": 12, "ratio_of_minima": 1.0,
    "ratio_quartiles": [1.0, 1.0], "saved_mib": 1.0, "saved_ratio": 1.0,
}  # fmt: skip
GPU = {
    "ceilings": {"copy": {"gb_per_second": 3000.4}, "matmul bfloat16": {"tflop_per_second": 798.2}},
    "kernel_check": {
        "8×64×56×56 NHWC bfloat16": [
            {"kernel": "square_sum", "error": 1e-3, "limit": 2e-3, "ok": True},
            {"kernel": "correct", "error": 0.5, "limit": 0.25, "ok": False},
        ]
    },
    "resnet50": {
        "train amp_bfloat16 compiled": [
            NETWORK | {"normalizer": "batchnorm", "train_step_time": 90.0, "train_samples_per_sec": 2844.0,
                       "ratio": 1.0, "peak_mib": 20000.0, "peak_ratio": 1.0},
            NETWORK | {"normalizer": "patchnorm", "train_step_time": 72.0, "train_samples_per_sec": 3555.0,
                       "ratio": 0.8, "peak_mib": 11000.0, "peak_ratio": 0.55},
        ]
    },
    "kernel_speed": {"256×64×112×112": [
        {"kernel": "square_sum", "of_copy": 0.93, "copy_gb_per_second": 2950.0},
        {"kernel": "correct", "of_copy": 0.87, "copy_gb_per_second": 2950.0},
    ]},
}  # fmt: skip


@pytest.fixture
def measured(tmp_path):
    (tmp_path / "gpu").mkdir()
    for name, rows in GPU.items():
        content = {"status": "ok", "seconds": 12.0, "environment": {"device": "a GPU", "torch": "3.0"},
                   "rows": {row: {"results": found, "seconds": 1.0} for row, found in rows.items()}}  # fmt: skip
        (tmp_path / "gpu" / f"{name}.json").write_text(json.dumps(content))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- gpu: scripts/benchmark.py report -->\nold\n<!-- end of gpu -->\nafter\n")
    write_report(tmp_path, tmp_path / "performance.md", readme)
    return (tmp_path / "performance.md").read_text(), readme.read_text()


def test_what_a_gpu_has_measured_reaches_page_and_readme(measured):
    page, readme = measured
    assert "mixed precision, batch 256, compiled | gpu | 1.25 | ≥ 1.05 | 1.15 | met |" in page
    assert "| peak training memory, the same | gpu | 0.55 | ≤ 0.60 | 0.50 | met |" in page
    assert "| bandwidth of the passes / of a copy, lowest | gpu | 0.87 |" in page
    assert "- Requirements: 3 met, 0 missed, 24 not measured.\n" in page
    assert "device a GPU, torch 3.0\n" in page
    assert "| copy | 3000 GB/s |\n| matmul bfloat16 | 798 TFLOP/s |\n" in page
    assert "1 of 2 checks are within their limit." in page
    assert "| correct | 8×64×56×56 NHWC bfloat16 | 0.5 | 0.25 |" in page
    assert "8×64×56×56 NHWC bfloat16: not ok |" in page
    assert "| 256×64×112×112 | 2950 | 0.93 | 0.87 |" in page
    assert "| patchnorm | 72.0 | 1.0 | 1.0 | 3555.00 |" in page
    text = " ".join(readme.split())
    assert (
        "On one a GPU, `resnet50_patchnorm` trains 1.25 times as many images per second as batch norm, with 0.55"
        in text
    )
    assert readme.startswith("before\n")
    assert readme.endswith("<!-- end of gpu -->\nafter\n")


def test_until_a_gpu_has_measured_page_and_readme_say_so(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- gpu: scripts/benchmark.py report -->\n<!-- end of gpu -->\n")
    write_report(tmp_path, tmp_path / "performance.md", readme)
    assert (tmp_path / "performance.md").read_text().count("| gpu | not measured |") == 3
    assert "On a GPU: not measured yet." in readme.read_text()


@pytest.mark.slow
# the compiler itself looks at the gradients of what enters a graph in the middle of the network
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_what_the_compiler_sees_into_or_not_saves_less():
    bench = Bench("resnet18", 2, 32, torch.device("cpu"), "float32", rounds=2, backend="aot_eager")
    rows = bench.train(["batchnorm", "patchnorm", "patchnorm" + OPAQUE], compiled=True)
    standard, traced, opaque = rows
    assert standard["ratio"] == standard["saved_ratio"] == 1.0
    assert traced["saved_ratio"] < opaque["saved_ratio"] < 0.7  # between the graphs stand tensors that one would fuse
    assert all(row["n"] == 2 and row["step_time_min"] <= row["train_step_time"] for row in rows)
    assert opaque["param_count"] == traced["param_count"]
