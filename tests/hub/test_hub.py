"""Publish and pull, by the real client, against a Hub on the loopback address."""

import json

import pytest
from forks import run_forked
from pushing import push
from safetensors.torch import load_file


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
    failed = run_forked("-c", code, variables=hub.environment(tmp_path), cwd=tmp_path, fresh=True, ok=False)
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
    here = dict(variables=hub.environment(tmp_path), fresh=True)
    result = run_forked(
        "scripts/push_to_hub.py", finished_runs / "resnet", "--repo-id", repo, "--tag", "v1", **here
    )  # fmt: skip
    assert f'affnorm_zoo.load("{repo}", revision="v1")' in result.stdout
    assert "model.safetensors" in result.stdout
    pulled = run_forked("-m", "affnorm_zoo.cli", "pull", repo, "--revision", "v1", "--verify", **here)
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
