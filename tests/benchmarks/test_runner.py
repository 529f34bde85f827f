"""Steps in processes of their own: what one does to itself, or a kill to all of them, costs nothing that was found."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import wait_for

from affnorm_zoo.benchmarks.gpu_evidence.runner import run_steps
from affnorm_zoo.errors import UsageError

STEP = """
import json, os, sys, time
name, folder = sys.argv[1:]
path = os.path.join(folder, name + ".json")
rows = json.load(open(path))["rows"] if os.path.exists(path) else {}
def write(status):
    with open(path + ".tmp", "w") as file:
        json.dump({"status": status, "rows": rows}, file)
    os.replace(path + ".tmp", path)
def count(what):
    with open(os.path.join(folder, "calls"), "a") as file:
        file.write(what + "\\n")
count(name)
with open(os.path.join(folder, "pid"), "w") as file:
    file.write(str(os.getpid()))
write("running")
for number in range(2):
    if str(number) not in rows:
        count(f"{name}.{number}")
        rows[str(number)] = {"error": "no"} if name == "wrong" else {"results": number}
        write("running")
        if name == "lost" and len(rows) < 2:
            sys.exit(75)
        if name == "slow":
            time.sleep(60)
    if name == "crash":
        print("a last word", flush=True)
        os.abort()
write("failed" if name == "wrong" else "ok")
"""


@dataclass
class Step:
    name: str
    seconds: float = 0.0
    limit: float = 30.0
    alone: bool = False


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(STEP)
    output = tmp_path / "output"

    def call(*steps, **kwargs):
        command = lambda name: [sys.executable, str(script), name, str(output)]  # noqa: E731
        return {outcome.name: outcome for outcome in run_steps(steps, output, command, **kwargs)}

    call.output = output
    call.calls = lambda: (output / "calls").read_text().split()
    call.read = lambda name: json.loads((output / f"{name}.json").read_text())
    return call


def test_a_step_that_fails_is_recorded_and_the_next_begins(run):
    found = run(Step("wrong"), Step("crash"), Step("good"))
    assert [outcome.status for outcome in found.values()] == ["failed", "failed", "ok"]
    assert found["wrong"].remark == "rows that failed: 0, 1"
    assert found["crash"].remark == run.read("crash")["error"] == "a last word"
    assert run.read("crash")["rows"] == {"0": {"results": 0}}
    assert run.read("good")["seconds"] > 0


def test_what_has_ended_is_not_run_again(run):
    run(Step("wrong"), Step("good"))
    before = run.calls()
    found = run(Step("wrong"), Step("good"), Step("new"))
    assert [outcome.remark for outcome in found.values()] == ["from an earlier call"] * 2 + [""]
    assert run.calls() == [*before, "new", "new.0", "new.1"]


def test_steps_side_by_side_end_in_their_order(run):
    found = run(Step("good"), Step("wrong"), Step("new"), jobs=2)
    assert [(name, outcome.status) for name, outcome in found.items()] == [
        ("good", "ok"), ("wrong", "failed"), ("new", "ok"),
    ]  # fmt: skip


def test_a_step_that_times_something_runs_alone(run):
    found = run(Step("first"), Step("slow", limit=2.0, alone=True), Step("good"), Step("last", alone=True), jobs=3)
    assert [outcome.status for outcome in found.values()] == ["ok", "timed out", "ok", "ok"]
    assert run.calls() == [
        "first", "first.0", "first.1", "slow", "slow.0", "good", "good.0", "good.1", "last", "last.0", "last.1",
    ]  # fmt: skip


def test_retry_repeats_the_failed_rows_alone(run):
    run(Step("wrong"), Step("good"))
    content = run.read("wrong")
    content["rows"]["0"] = {"results": 0}
    (run.output / "wrong.json").write_text(json.dumps(content))
    before = run.calls()
    run(Step("wrong"), Step("good"), retry=True)
    assert run.calls() == [*before, "wrong", "wrong.1"]


def test_a_gpu_that_a_kernel_has_lost_costs_one_process_and_no_row(run):
    assert run(Step("lost"))["lost"].status == "ok"
    assert run.calls() == ["lost", "lost.0", "lost", "lost.1"]


def test_a_step_ends_at_its_limit_and_keeps_its_rows(run):
    found = run(Step("slow", limit=4.0), Step("good"))
    assert found["slow"].status == "timed out"
    assert run.read("slow")["rows"] == {"0": {"results": 0}}
    assert found["good"].status == "ok"


def test_a_budget_leaves_out_what_does_not_fit_and_tries_what_does(run):
    found = run(Step("large", seconds=99.0), Step("good", seconds=1.0), budget=20.0)
    assert found["large"].status == "left out"
    assert found["large"].remark == "needs 99 s, 20 s are left"
    assert not (run.output / "large.json").exists()
    assert found["good"].status == "ok"


def test_a_step_that_the_budget_cuts_off_continues_in_the_next_call(run):
    found = run(Step("slow", seconds=1.0), budget=4.0)
    assert found["slow"].status == "cut off"
    assert run.calls() == ["slow", "slow.0"]
    run(Step("slow", limit=4.0))
    assert run.calls() == ["slow", "slow.0", "slow", "slow.1"]
    assert run.read("slow")["seconds"] > 6  # of both calls


RUNNER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from affnorm_zoo.benchmarks.gpu_evidence.runner import run_steps
script, output = sys.argv[1:]
steps = [SimpleNamespace(name=name, seconds=0.0, limit=60.0, alone=False) for name in ("good", "slow", "last")]
list(run_steps(steps, Path(output), lambda name: [sys.executable, script, name, output]))
"""


def is_gone(pid):
    status = Path(f"/proc/{pid}/stat")
    return not status.is_file() or status.read_text().split()[2] == "Z"


@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_runner_loses_nothing_and_its_folder_is_free_again(run, tmp_path, signum):
    script, output = tmp_path / "step.py", run.output
    calls = output / "calls"
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", RUNNER, str(script), str(output)]) as runner:
        wait_for(lambda: calls.is_file() and "slow.0" in calls.read_text().split())
        with pytest.raises(UsageError, match="another process runs steps"):
            run(Step("good"))
        runner.send_signal(signum)
    wait_for(lambda: is_gone((output / "pid").read_text()), seconds=10)  # two steps must not measure side by side
    found = run(Step("good"), Step("slow", limit=4.0), Step("last"))
    assert [outcome.status for outcome in found.values()] == ["ok", "timed out", "ok"]
    assert run.calls().count("good") == 1
    assert run.calls().count("slow.0") == 1
    assert run.calls().count("slow.1") == 1


def test_the_processes_of_a_step_end_with_it(run, tmp_path):
    (tmp_path / "step.py").write_text(
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "import time; time.sleep(60)\n"
    )
    run(Step("slow", limit=3.0))
    wait_for(lambda: is_gone((tmp_path / "pid").read_text()), seconds=10)
