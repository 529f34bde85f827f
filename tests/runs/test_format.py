"""A run or checkpoint of another format is refused with both versions, and so is one with other fields."""

import json
import re

import pytest

from affnorm_zoo.config import RunConfig, config_to_yaml
from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.checkpoint import checkpoint_name, commit, find_latest, verify
from affnorm_zoo.runs.record import FORMAT, FormatError, read_config
from affnorm_zoo.runs.resume import choose_checkpoint

OTHERS = {"none": None, "newer": FORMAT + 1}


def write_checkpoint(run, windows=4):
    folder = run / "checkpoints" / checkpoint_name(windows)
    commit(folder, lambda temporary: (temporary / "state.json").write_text("{}"))
    return folder


def restate(path, version):
    """Let a file state another format version, or none."""
    content = json.loads(path.read_text())
    del content["format"]
    path.write_text(json.dumps(content if version is None else {"format": version, **content}))


def message_of(version):
    stated = "no format version" if version is None else f"format version {version}"
    return f"has {stated}, and this affnorm_zoo reads format version {FORMAT}: resume it with the affnorm_zoo that"


@pytest.mark.parametrize("version", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_format_is_refused_with_both_versions(version, tmp_path):
    folder = write_checkpoint(tmp_path)
    verify(folder)
    restate(folder / "manifest.json", version)
    with pytest.raises(FormatError, match=message_of(version)):
        choose_checkpoint(str(folder), tmp_path / "other")


@pytest.mark.parametrize("version", OTHERS.values(), ids=OTHERS)
def test_it_is_not_passed_over_for_an_earlier_one(version, tmp_path):
    write_checkpoint(tmp_path, windows=2)
    restate(write_checkpoint(tmp_path) / "manifest.json", version)
    with pytest.raises(FormatError, match=r"window_00000004 " + message_of(version)):
        find_latest(tmp_path / "checkpoints")


@pytest.mark.parametrize("version", OTHERS.values(), ids=OTHERS)
def test_a_run_of_another_format_does_not_begin_again(version, tmp_path):
    """Its checkpoints may have other names, and would not be found."""
    (tmp_path / "run.json").write_text(json.dumps({"format": FORMAT}))
    assert choose_checkpoint("auto", tmp_path) is None
    restate(tmp_path / "run.json", version)
    with pytest.raises(FormatError, match=r"run.json " + message_of(version)):
        choose_checkpoint("auto", tmp_path)


def test_a_setting_that_the_config_of_a_run_lacks_is_an_error(tmp_path):
    written = config_to_yaml(RunConfig())
    (tmp_path / "config.yaml").write_text(written)
    assert read_config(tmp_path) == RunConfig()
    (tmp_path / "config.yaml").write_text(re.sub(r"\n  (epochs|hflip): .*", "", written))
    with pytest.raises(FormatError, match=r"config.yaml lacks data.hflip, train.epochs: read it with the affnorm_zoo"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_text(written.replace("\n  epochs: ", "\n  rounds: "))
    with pytest.raises(UsageError, match=r"unknown key 'train.rounds'"):
        read_config(tmp_path)
