"""Publish and pull, by the real client, against a Hub on the loopback address."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool

import pytest
import torch
from pushing import push
from runs import ROOT, wait_for
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("family", ["resnet", "vit", "ema"])
def test_what_is_pulled_elsewhere_is_what_was_pushed(family, hub, clients, transport, finished_runs, repo, tmp_path):
    run = finished_runs / family
    commit = clients(**transport)(push(run, repo))
    assert hub.versions(repo) == [commit]
    out = tmp_path / "out.safetensors"
    elsewhere = clients(role="reader", **transport)  # never pushes, and has a cache of its own
    elsewhere(
        "from safetensors.torch import save_file\n"
        f"ours = load({repo!r}, verify=True).eval()\n"
        f"plain = timm.create_model('hf-hub:{repo}', pretrained=True).eval()\n"
        "x = torch.linspace(-1, 1, 192).reshape(3, 1, 8, 8)\n"
        "assert torch.equal(ours(x), plain(x))\n"
        f"save_file({{**ours.state_dict(), 'logits of three': ours(x).detach()}}, {str(out)!r})\n"
    )
    published = load_file(run / ("ema.safetensors" if family == "ema" else "model.safetensors"))
    loaded = load_file(out)
    logits = loaded.pop("logits of three")
    assert loaded.keys() == published.keys()
    assert all(published[name].equal(tensor) for name, tensor in loaded.items())
    reader = clients(**transport)
    expected = reader(f"result = load({repo!r}).eval()(torch.linspace(-1, 1, 192).reshape(3, 1, 8, 8)).tolist()")
    assert logits.tolist() == expected


def test_a_reader_without_the_package_is_told_what_to_import(hub, clients, finished_runs, repo, tmp_path):
    clients()(push(finished_runs / "resnet", repo))
    code = f"import timm; timm.create_model('hf-hub:{repo}', pretrained=True)"
    reader = [sys.executable, "-W", "ignore", "-c", code]
    failed = subprocess.run(reader, env=hub.environment(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    said = failed.stderr.strip().splitlines()[-1]
    assert said == "RuntimeError: Unknown model (resnet20_cifar_patchnorm)"
    # timm has no room for more, so the files say it: what people read, and what timm has just downloaded
    card, described = clients()(
        "from huggingface_hub import hf_hub_download\n"
        f"result = [open(hf_hub_download({repo!r}, name)).read() for name in ('README.md', 'config.json')]"
    )
    assert "import affnorm_zoo  # registers the architecture with timm" in card
    assert json.loads(described)["requires"].startswith("import affnorm_zoo before")


def test_a_release_holds_what_it_should_and_no_pickle(hub, clients, finished_runs, repo):
    commit = clients()(push(finished_runs / "resnet", repo))
    assert hub.ask()["repos"][repo]["files"][commit] == [
        ".gitattributes", "README.md", "config.json", "config.yaml", "curves.png", "golden.safetensors",
        "manifest.json", "metrics.jsonl", "model.safetensors", "report.json",
    ]  # fmt: skip
    report = json.loads((finished_runs / "resnet/report.json").read_text())
    card = clients()(
        "from huggingface_hub import ModelCard\n"
        f"card = ModelCard.load({repo!r})\n"
        "result = [card.data.eval_results[0].metric_value, card.data.library_name, card.content]"
    )
    assert card[:2] == [report["val"]["top1"], "timm"]
    assert f'timm.create_model("hf-hub:{repo}", pretrained=True)' in card[2]


def test_pushing_again_makes_no_second_version(hub, clients, transport, finished_runs, repo):
    client = clients(**transport)
    first = client(push(finished_runs / "resnet", repo, tag="v1"))
    assert client(push(finished_runs / "resnet", repo, tag="v1")) == first
    assert hub.versions(repo) == [first]


def test_revisions_load_what_they_name(hub, clients, finished_runs, repo):
    client = clients()
    first = client(push(finished_runs / "resnet", repo, tag="v1"))
    second = client(push(finished_runs / "second", repo, tag="v2"))
    assert hub.versions(repo) == [first, second]
    for revision, run in (("v1", "resnet"), (first, "resnet"), ("v2", "second"), (None, "second"), ("main", "second")):
        weight = client(f"result = load({repo!r}, revision={revision!r}).conv1.weight.flatten().tolist()")
        assert weight == load_file(finished_runs / run / "model.safetensors")["conv1.weight"].flatten().tolist()
    plain = client(f"result = timm.create_model('hf-hub:{repo}@v1', pretrained=True).conv1.weight.flatten().tolist()")
    assert plain == load_file(finished_runs / "resnet/model.safetensors")["conv1.weight"].flatten().tolist()
    error = client.fails(push(finished_runs / "second", repo, tag="v1"))
    assert "the tag v1" in error
    assert "already names another version" in error
    assert "has no such revision" in client.fails(f"load({repo!r}, revision='v3')")


def test_a_branch_is_made_and_left_apart(hub, clients, finished_runs, repo):
    client = clients()
    first = client(push(finished_runs / "resnet", repo))
    second = client(push(finished_runs / "second", repo, revision="dev"))
    assert hub.ask()["repos"][repo]["branches"] == {"main": first, "dev": second}


def test_a_dry_run_sends_nothing(hub, clients, finished_runs, repo):
    before = len(hub.ask()["requests"])
    assert clients()(push(finished_runs / "vit", repo, dry_run=True)) is None
    assert len(hub.ask()["requests"]) == before
    assert (finished_runs / "vit/release/manifest.json").is_file()


def test_the_command_pushes_and_prints_the_way_back(hub, finished_runs, repo, tmp_path):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "scripts/push_to_hub.py", finished_runs / "resnet", "--repo-id", repo,
         "--tag", "v1"],
        cwd=ROOT, env=hub.environment(tmp_path), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f'affnorm_zoo.load("{repo}", revision="v1")' in result.stdout
    assert "model.safetensors" in result.stdout
    pulled = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "affnorm_zoo.cli", "pull", repo, "--revision", "v1", "--verify"],
        cwd=ROOT, env=hub.environment(tmp_path), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert hub.versions(repo)[0] in pulled.stdout


DENIED = {
    "no token": (None, "zoo", "there is no token: set HF_TOKEN"),
    "bad token": ("hf_forged", "zoo", "the token is not valid"),
    "read-only token": ("hf_reader", "zoo", "the token can only read"),
    "foreign namespace": ("hf_stranger", "zoo", "is not in a namespace of this token, which are stranger"),
}


@pytest.mark.parametrize("case", DENIED)
def test_who_may_not_push_is_told_why_and_nothing_is_made(case, hub, clients, finished_runs, repo):
    token, _, message = DENIED[case]
    answer = clients(token)(push(finished_runs / "resnet", repo), ok=False)
    assert answer["error"].startswith("HubError: ")
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    if token:
        assert token not in json.dumps(answer)
    assert repo not in hub.ask()["repos"]


def test_a_private_repository_is_for_its_own(clients, finished_runs, repo):
    clients()(push(finished_runs / "resnet", repo, private=True))
    clients("hf_reader")(f"load({repo!r})")
    assert "it is private and the token does not reach it" in clients("hf_stranger").fails(f"load({repo!r})")


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
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "affnorm_zoo.cli", *commands[command], "--timeout", "2"],
        cwd=ROOT, env=hub.environment(tmp_path, **transport), capture_output=True, text=True, timeout=200,
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
    assert all("somebody else has pushed in the meantime: push again" in error for error in errors)
    assert set(hub.versions(repo)[1:]) == {answer["result"] for answer in answers if "error" not in answer}
    for one, run in pushers:
        assert one(push(run, repo)) == hub.versions(repo)[-1]
        assert len(hub.ask()["repos"][repo]["files"][hub.versions(repo)[-1]]) == 10


def test_somebody_faster_is_a_clear_error(hub, clients, finished_runs, repo):
    client = clients()
    client(push(finished_runs / "resnet", repo))
    hub.faults(somebody_was_faster=1)
    error = client.fails(push(finished_runs / "second", repo))
    assert "somebody else has pushed in the meantime: push again" in error
    commit = client(push(finished_runs / "second", repo))
    assert "other.txt" not in hub.ask()["repos"][repo]["files"][commit]
