"""docs/training.md: its commands in their order, on generated pictures, and its numbers."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from pictures import draw_folder
from runs import ROOT, environment, metrics, state, wait_for

PAGE = (ROOT / "docs/training.md").read_text()


def commands():
    return [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def call(command, folder, **kwargs):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        shlex.split(command), cwd=folder, env=environment(PATH=path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **kwargs,
    )  # fmt: skip


def finish(process):
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    return output


@pytest.mark.slow
def test_a_newcomer_gets_from_photographs_to_a_model(tmp_path):
    draw_folder(tmp_path / "photos", classes=("cat", "dog"), per_class=32, size=64)
    (tmp_path / "photos.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL).group(1))
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    look, train, resume, evaluate, launch = commands()

    assert "updates           4 per epoch, 12 in total" in finish(call(look, tmp_path))
    assert not (tmp_path / "runs").exists()

    run = tmp_path / "runs/photos"
    process = call(train, tmp_path)
    wait_for(lambda: process.poll() is not None or list(run.glob("checkpoints/window_*[0-9]")), seconds=120)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "resume with --resume auto" in errors
    assert state(run)["state"] == "preempted"

    assert 'timm.create_model("local-dir:runs/photos/export", pretrained=True)' in finish(call(resume, tmp_path))
    assert [record["update"] for record in metrics(run, "update")] == list(range(1, 13))

    measured = json.loads(finish(call(evaluate, tmp_path)))
    assert measured["top1"] == json.loads((run / "report.json").read_text())["ema"]["top1"]
    assert (tmp_path / "results.csv").read_text().startswith("model,top1,")
    assert timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).num_classes == 2

    assert "2 processes x 1 micro-batches x 32" in finish(call(launch, tmp_path))


def test_the_numbers_are_those_of_their_file():
    results = json.loads((ROOT / "docs/benchmarks/loop/cpu.json").read_text())
    rows = {"training loop": "loop", "bare step": "bare_step", "batches from memory": "in_memory"}
    for text, name in {**rows, "batches from two workers": "workers"}.items():
        assert f"| {text} | {results[name]['mean']:.0f} ± {results[name]['stdev']:.0f} |" in PAGE, text
    assert f"| {results['loop_to_bare_step']:.2f} of the bare step |" in PAGE
    assert f"| {results['in_memory_to_workers']:.1f} times the workers |" in PAGE
    assert results["n"] == 12
    results = json.loads((ROOT / "docs/benchmarks/loop/host.json").read_text())
    text = " ".join(PAGE.split())
    assert f"took {results['host_ms']['over_bare_step']:.1f} ms per update more" in text
    assert f"and {results['first_update_seconds']:.2f} s to its first update" in text
    assert f"median of {results['n'] * results['updates_a_turn']} pairs" in text


@pytest.mark.parametrize("name", re.findall(r"`(\w+)`", PAGE.partition("launch configs: ")[2].partition(" and ")[0]))
def test_the_launch_configs_are_there(name):
    assert (ROOT / f"configs/accelerate/{name}.yaml").is_file()
