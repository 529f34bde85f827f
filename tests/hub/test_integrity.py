"""Damaged files, no network, other servers: what is loaded is what was published, or an error says why not."""

import pytest
from pushing import push
from xet import XET

from affnorm_zoo.hub.errors import HubError, hub_errors

SECRET = "hf_writer"


def test_a_flipped_byte_is_refused_then_healed(hub, clients, transport, finished_runs, repo, tmp_path):
    client = clients(**transport)
    client(push(finished_runs / "resnet", repo))
    cache = str(tmp_path / "cache")
    hub.faults(a_byte_flipped=1)
    assert client(f"load({repo!r}, cache_dir={cache!r}); result = True")  # downloaded twice
    hub.faults(a_byte_flipped=2)
    error = client.fails(f"load({repo!r}, cache_dir={cache + '2'!r})")
    assert "model.safetensors of" in error
    assert "is not what was published: sha256 differs" in error
    assert client(f"load({repo!r}, cache_dir={cache + '2'!r}); result = True")


def test_a_file_damaged_in_the_cache_is_healed_or_named(hub, clients, finished_runs, repo, tmp_path):
    home = tmp_path / "home"
    client = clients(home=home)
    client(push(finished_runs / "resnet", repo))
    damage = (
        f"path = (pull({repo!r}) / 'model.safetensors').resolve()\n"
        "data = bytearray(path.read_bytes()); data[-9] ^= 4; path.write_bytes(bytes(data))\n"
    )
    client(damage)
    client(f"load({repo!r})")
    client(damage)
    offline = clients(home=home, HF_HUB_OFFLINE="1")
    assert "is damaged in the cache: load it again with a network" in offline.fails(f"load({repo!r})")


def test_offline_the_cache_is_enough_and_its_lack_is_clear(hub, clients, finished_runs, repo, tmp_path):
    home = tmp_path / "home"
    first = clients(home=home)(push(finished_runs / "resnet", repo))
    clients(home=home)(f"load({repo!r})")
    before = len(hub.ask()["requests"])
    offline = clients(home=home, HF_HUB_OFFLINE="1")
    for revision in (None, "main", first):
        offline(f"load({repo!r}, revision={revision!r}, verify=True)")
    error = offline.fails("load('zoo/never-seen')")
    assert "is not in the cache" in error
    assert len(hub.ask()["requests"]) == before


def test_a_dead_server_is_an_error_and_not_an_old_version(hub, clients, finished_runs, repo, tmp_path):
    home = tmp_path / "home"
    client = clients(home=home)
    first = client(push(finished_runs / "resnet", repo))
    client(f"load({repo!r})")
    cut_off = clients(home=home, HF_ENDPOINT="http://127.0.0.1:9")
    error = cut_off.fails(f"load({repo!r})")
    assert "no answer from http://127.0.0.1:9: check the network" in error
    cut_off(f"load({repo!r}, revision={first!r})")  # a commit needs no asking


def test_a_damaged_manifest_is_healed(hub, clients, finished_runs, repo, tmp_path):
    client = clients()
    client(push(finished_runs / "resnet", repo))
    hub.faults(manifest_damaged=1)
    cache = str(tmp_path / "cache")
    assert "bytez" not in client(f"result = (pull({repo!r}, cache_dir={cache!r}) / 'manifest.json').read_text()")


def test_what_the_hub_records_otherwise_is_refused(hub, clients, finished_runs, repo, tmp_path):
    client = clients()
    client(push(finished_runs / "resnet", repo))
    cache = str(tmp_path / "cache")
    hub.faults(another_record=2)
    error = client.fails(f"load({repo!r}, cache_dir={cache!r})")
    assert "model.safetensors" in error
    assert "differ from the Hub's own record" in error
    hub.faults()
    client(f"load({repo!r}, cache_dir={cache!r})")


def test_an_old_version_in_the_cache_does_not_hide_a_bad_token(clients, finished_runs, repo, tmp_path):
    home = tmp_path / "home"
    client = clients(home=home)
    first = client(push(finished_runs / "resnet", repo, private=True))
    client(f"load({repo!r})")
    bad = clients("hf_revoked", home=home)
    assert "the token is not valid" in bad.fails(f"load({repo!r})")
    bad(f"load({repo!r}, revision={first!r})")  # a commit needs no asking


def test_a_hub_that_is_asked_too_often_says_so(hub, clients, finished_runs, repo):
    client = clients()
    hub.faults(too_many_requests=99)
    assert "asks for fewer requests: wait" in client.fails(push(finished_runs / "resnet", repo))
    hub.faults()
    assert hub.versions(repo) == []
    client(push(finished_runs / "resnet", repo))


def test_a_namespaces_models_are_listed(hub, clients, finished_runs, repo):
    client = clients()
    client(push(finished_runs / "resnet", repo, private=True))
    client("from huggingface_hub import HfApi; HfApi().create_repo('zoo/something-else', exist_ok=True)")
    listed = "from affnorm_zoo import list_pretrained; result = list_pretrained({!r}, namespace='zoo')"
    found = client(listed.format("*"))
    assert repo in found
    assert "zoo/something-else" not in found
    assert client(listed.format(repo.partition("/")[2])) == [repo]
    assert repo not in clients(None)(listed.format("*"))
    error = client.fails("list_pretrained(namespace='zoo', token='hf_forged')")
    assert "listing the models of zoo failed: the token is not valid" in error


def test_a_server_without_xet_is_named_with_the_remedy(hub, clients, finished_runs, repo):
    client = clients(**XET)
    hub.faults(no_xet=99)
    assert "set HF_HUB_DISABLE_XET=1" in client.fails(push(finished_runs / "resnet", repo))


def test_a_repository_of_others_is_told_apart(clients, repo):
    client = clients()
    assert "there is no such repository" in client.fails("load('zoo/nothing')")
    client(f"from huggingface_hub import HfApi; HfApi().create_repo({repo!r})")
    assert "lacks the file: it was not made by affnorm_zoo" in client.fails(f"load({repo!r})")
    assert "a repository is called ORG/NAME" in client.fails("load('zoo/a/b')")


def test_outputs_that_differ_are_refused_when_asked(clients, finished_runs, repo):
    client = clients()
    client(push(finished_runs / "resnet", repo))
    client(
        "from affnorm_zoo.hub import release\nfrom safetensors.torch import load_file, save_file\n"
        f"folder = pull({repo!r})\ngolden = load_file(folder / 'golden.safetensors')\n"
    )
    error = client.fails(
        "import tempfile\ngolden['logits'] = golden['logits'] * 1.01\n"
        "other = Path(tempfile.mkdtemp()) / 'golden.safetensors'\nsave_file(golden, other)\n"
        "release.check_golden(release.load_folder(folder), other)"
    )
    assert "the loaded model's logits differ from the published ones" in error


def test_no_token_stands_in_a_message():
    with pytest.raises(HubError) as caught, hub_errors("pushing"):
        raise ValueError("Authorization: Bearer hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 was refused by hf_hub_download")
    assert str(caught.value) == "pushing failed: ValueError: Authorization: Bearer *** was refused by hf_hub_download"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_token_goes_to_the_hub_alone_and_nobody_goes_elsewhere(hub, clients, transport, finished_runs, repo):
    client = clients(**transport)
    client(push(finished_runs / "resnet", repo))
    client(f"load({repo!r})")
    requests = hub.ask()["requests"]
    assert {origin for origin, *_ in requests} == {"127.0.0.1", "localhost"}
    assert not [path for origin, _, path, has_token in requests if origin == "localhost" and has_token]
    assert [path for origin, _, path, has_token in requests if has_token]
    for file in (finished_runs / "resnet/release").iterdir():
        assert SECRET.encode() not in file.read_bytes()
