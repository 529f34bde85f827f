"""What a publication survives: lost answers, silence, cuts, kills and other pushers."""

import os
import re
import shutil
import signal
import time
from multiprocessing.pool import ThreadPool

import pytest
import torch
from forks import run_forked
from pushing import push
from runs import wait_for
from safetensors.torch import load_file, save_file


def test_a_lost_answer_is_found_out_to_be_a_success(hub, clients, transport, finished_runs, repo):
    hub.faults(commit_answer_lost=1)
    commit = clients(**transport)(push(finished_runs / "resnet", repo))
    assert hub.versions(repo) == [commit]


def test_a_silent_server_is_not_waited_for(hub, clients, finished_runs, repo):
    client = clients()
    client("from affnorm_zoo.hub import client as module; module.TIMEOUT_SECONDS = 1")
    hub.faults(silence=99)
    begin = time.monotonic()
    error = client.fails(push(finished_runs / "resnet", repo))
    assert time.monotonic() - begin < 30
    assert "no answer from http://127.0.0.1" in error
    assert "check the network" in error
    hub.faults()
    client("module.TIMEOUT_SECONDS = 60")
    client(push(finished_runs / "resnet", repo))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_slow_server_is_given_up_in_time(command, hub, clients, transport, finished_runs, repo, tmp_path):
    clients(**transport)(push(finished_runs / "second", repo))
    commands = {"push": ["push", finished_runs / "resnet", "--repo-id", repo], "pull": ["pull", repo]}
    # the answers of the interface come late; those of the storage come byte by byte, which is no silence
    hub.faults(**{"push": {"silence": 99}, "pull": {"a_trickle": 99}}[command])
    result = run_forked(
        "-m", "affnorm_zoo.cli", *commands[command], "--timeout", "2", variables=hub.environment(tmp_path, **transport),
        fresh=True, ok=False,
    )  # fmt: skip
    assert result.returncode == 2
    doing = {"push": "pushing to", "pull": "loading"}[command]
    assert f"error: {doing} {repo} took more than 2 s: try again" in result.stderr
    assert len(hub.versions(repo)) == 1


@pytest.fixture
def fresh(finished_runs, tmp_path):
    """A run whose weights no server has got yet: what it has got it is not sent."""
    run = shutil.copytree(finished_runs / "second", tmp_path / "fresh")
    weights = load_file(run / "model.safetensors")
    weights["fc.bias"] += torch.rand(10, generator=torch.Generator().manual_seed(time.time_ns()))
    save_file(weights, run / "model.safetensors")
    return run


@pytest.mark.slow
def test_an_upload_that_is_always_cut_ends_in_an_error(hub, clients, fresh, repo):
    client = clients()
    hub.faults(upload_cut=99)
    begin = time.monotonic()
    error = client.fails(push(fresh, repo))
    assert time.monotonic() - begin < 60
    assert f"pushing to {repo} failed" in error
    assert hub.versions(repo) == []
    hub.faults()
    commit = client(push(fresh, repo))
    assert hub.versions(repo) == [commit]


@pytest.mark.parametrize("fault", ["commit_refused", "commit_cut"])
def test_a_failed_commit_leaves_the_head_and_a_second_try_completes_it(
    fault, hub, clients, transport, finished_runs, repo
):
    client = clients(**transport)
    first = client(push(finished_runs / "resnet", repo))
    hub.faults(**{fault: 9})
    error = client.fails(push(finished_runs / "second", repo))
    said = {"commit_refused": "the Hub answered 503; try again later", "commit_cut": "no answer from"}
    assert f"pushing to {repo} failed: {said[fault]}" in error
    assert hub.versions(repo) == [first]
    hub.faults()
    second = client(push(finished_runs / "second", repo))
    assert hub.versions(repo) == [first, second]


def test_a_cut_upload_is_resumed_by_the_client(hub, clients, transport, fresh, repo):
    hub.faults(upload_cut=1)
    commit = clients(**transport)(push(fresh, repo))
    assert hub.ask()["faults"]["upload cut"] == 0
    assert hub.versions(repo) == [commit]


STAGES = {"create": "/repos/create", "ask": "/preupload/", "upload": "/lfs/|/cas/v1/xorbs/", "commit": "/commit/"}


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[] if stage == "upload" else pytest.mark.slow) for stage in STAGES]
)
def test_a_killed_push_is_completed_by_the_next(stage, hub, clients, transport, fresh, repo):
    before = len(hub.ask()["requests"])
    parent = clients(role="parent", **transport)  # never pushes itself, and so has no threads to lose
    child = parent(
        f"import os; result = os.fork()\nif result == 0:\n    try: {push(fresh, repo)}\n    finally: os._exit(0)"
    )
    wait_for(lambda: any(re.search(STAGES[stage], path) for _, _, path, _ in hub.ask()["requests"][before:]))
    os.kill(child, signal.SIGKILL)
    status = parent(f"result = os.waitpid({child}, 0)[1]")
    assert status == signal.SIGKILL or stage == "commit"  # after which it may have ended before
    for version in hub.versions(repo):
        assert len(hub.ask()["repos"][repo]["files"][version]) == 10
    commit = clients(**transport)(push(fresh, repo))
    assert hub.versions(repo) == [commit]


def test_of_two_who_push_at_once_none_leaves_half_a_version(hub, clients, finished_runs, repo, tmp_path):
    client = clients()
    client(push(finished_runs / "resnet", repo))
    pushers = [(client, finished_runs / "vit"), (clients(home=tmp_path), finished_runs / "second")]
    with ThreadPool(2) as pool:
        answers = pool.starmap(lambda one, run: one.answer(push(run, repo)), pushers, chunksize=1)
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert len(errors) < 2
    assert all("the repository changed while you were pushing: run the command again" in error for error in errors)
    assert set(hub.versions(repo)[1:]) == {answer["result"] for answer in answers if "error" not in answer}
    for one, run in pushers:
        assert one(push(run, repo)) == hub.versions(repo)[-1]
        assert len(hub.ask()["repos"][repo]["files"][hub.versions(repo)[-1]]) == 10


def test_somebody_faster_is_a_clear_error(hub, clients, finished_runs, repo):
    client = clients()
    client(push(finished_runs / "resnet", repo))
    hub.faults(somebody_was_faster=1)
    error = client.fails(push(finished_runs / "second", repo))
    assert "the repository changed while you were pushing: run the command again" in error
    commit = client(push(finished_runs / "second", repo))
    assert "other.txt" not in hub.ask()["repos"][repo]["files"][commit]
