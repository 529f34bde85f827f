"""The result beside the card, as the Hub reads it: the card's own number, under the data that the run names."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from pushing import push

from affnorm_zoo.hub import export_run
from affnorm_zoo.hub.release import build_release


def named(run, target, **settings):
    """A copy of a run whose config says more of its data."""
    run = shutil.copytree(run, target)
    text = (run / "config.yaml").read_text()
    for key, value in settings.items():
        before = next(line for line in text.splitlines() if line.startswith(f"  {key}: "))
        text = text.replace(before, f"  {key}: {value}")
    (run / "config.yaml").write_text(text)
    return run


def entries(text):
    return parse_eval_result_entries(yaml.safe_load(text))


@pytest.mark.parametrize(("hub_id", "task"), [("zoo/digits", "default"), ("zoo/digits:clean", "clean")])
def test_it_is_the_cards_number(hub_id, task, finished_runs, tmp_path):
    folder = export_run(named(finished_runs / "ema", tmp_path / "run", hub_id=hub_id, note="scans of 8 px"))
    (entry,) = entries((folder / ".eval_results/digits.yaml").read_text())
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert entry.value == result.metric_value == report["ema"]["top1"]
    assert entry.dataset_id == result.dataset_type == "zoo/digits"
    assert entry.task_id == task
    assert entry.notes == "top-1 accuracy on the split val; scans of 8 px"


@pytest.mark.parametrize("settings", [{}, {"hub_id": "zoo/digits", "hold_out": 100}], ids=["not named", "held out"])
def test_a_result_on_other_images_is_not_filed(settings, finished_runs, tmp_path):
    folder = export_run(named(finished_runs / "resnet", tmp_path / "run", **settings))
    assert not (folder / ".eval_results").exists()


def test_it_is_pushed_read_back_and_removed_with_its_reason(hub, clients, finished_runs, repo, tmp_path):
    run, client = named(finished_runs / "resnet", tmp_path / "run", hub_id="zoo/digits"), clients()
    first = client(push(run, repo))
    assert ".eval_results/digits.yaml" in hub.ask()["repos"][repo]["files"][first]
    assert ".eval_results/digits.yaml" in json.loads((run / "release/manifest.json").read_text())["files"]
    text = client(
        f"from huggingface_hub import hf_hub_download\n"
        f"result = open(hf_hub_download({repo!r}, '.eval_results/digits.yaml')).read()"
    )
    assert entries(text) == entries((build_release(run) / ".eval_results/digits.yaml").read_text())
    assert client(push(run, repo)) == first
    second = client(push(named(run, tmp_path / "other", hub_id="null"), repo))
    assert ".eval_results/digits.yaml" not in hub.ask()["repos"][repo]["files"][second]
