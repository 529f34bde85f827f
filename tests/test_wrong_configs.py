"""Whatever a config says, the answer before the first step is a run or one line."""

import math
import os
from dataclasses import fields
from typing import get_type_hints

import pytest
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import refusal, tiny

from affnorm_zoo.config import RunConfig, config_to_yaml, load_config
from affnorm_zoo.config.text import is_text
from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.resume import choose_checkpoint
from affnorm_zoo.training import dry_run

KEYS = {
    f"{section.name}.{field.name}": get_type_hints(section.default_factory)[field.name]
    for section in fields(RunConfig)
    for field in fields(section.default_factory)
}
NUMBERS = [-1, 0, 1, 2, 3, 7, 2**31, 2**32, 2**64, -0.5, 1e-300, 0.1, 0.5, 1.0, 2.5, math.inf, -math.inf, math.nan]
WORDS = [
    "", "x", "null", "true", "no", "foo-m9", "rand-mx", "rand-m9", "augmix-w0", "original", "cifar10", "val.loss",
    "resized", "none", "always", "never", "sgd", "muon", "bce", "agc", "value", "sqrt", "tanh", "wsd", "multistep",
    "constant", "skip", "cpu", "bf16", "fp16", "vit_nano_patch4_32_affinelike", "resnet20_cifar_batchnorm",
    "resnet20_cifar_patchnorm.c10_e10", "resnet20_cifar_patchnorm.nothing", ".", "~", "/nowhere", "hfds/", "wds/x",
]  # fmt: skip
LISTS = [[], [0], [0.5, 0.5], [0.5, 0.5, 0.5], [-1], [1, 2], ["x"], [None], [[1]], [True]]
MAPPINGS = [
    {}, {"a": 1}, {"features_only": True}, {"num_classes": 0}, {"global_pool": ""}, {"img_size": 16}, {"depth": "x"},
    {"in_chans": 3}, {"norm_scale": [1]}, {"pretrained": True}, {"scriptable": True}, {"betas": [0.9]}, {"eps": "x"},
    {"min_lr": 1}, {"warmup_lr": 1}, {"decay_rate": "x"}, {"decay_rate": 3.0}, {"cycle_mul": 0}, {"sched": "step"},
    {"noise": [0.0, 1.0]}, {"block_args": 3}, {"drop_rate": -1}, {1: 2}, {"a": {"b": [1, {}]}},
]  # fmt: skip
ANY = [*NUMBERS, *WORDS, *LISTS, *MAPPINGS, None, True, False]
# what costs minutes or processes when it is right
COSTLY = {"data.workers", "data.timeout_seconds", "runtime.compile", "runtime.trackers", "runtime.deterministic"}


def write(value):
    if isinstance(value, float):
        return f"{value:g}".replace("inf", ".inf").replace("nan", ".nan")
    return value if isinstance(value, str) else str(value).replace("None", "null").replace("'", '"')


def fitting(hint):
    """Values that are at least of the right kind, most of the time."""
    text = str(hint)
    if is_text(hint):
        return WORDS
    if "dict" in text:
        return MAPPINGS
    return LISTS if "tuple" in text else [True, False] if "bool" in text else NUMBERS


def entries(keys):
    """Overrides of a few keys."""
    one = st.sampled_from(sorted(keys)).flatmap(
        lambda key: st.tuples(st.just(key), st.one_of(st.sampled_from(fitting(KEYS[key])), st.sampled_from(ANY)))
    )
    return st.lists(one, min_size=1, max_size=4).map(lambda pairs: [f"{key}={write(value)}" for key, value in pairs])


def test_the_pools_hold_something_for_every_field():
    assert len(KEYS) > 50
    assert all(fitting(hint) for hint in KEYS.values())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(overrides=entries(KEYS))
def test_a_config_loads_and_reads_back_or_is_refused_in_a_line(overrides, tmp_path_factory):
    message = refusal(lambda: load_config(overrides=overrides))
    assert "\n" not in message
    if not message:
        file = tmp_path_factory.mktemp("config") / "config.yaml"
        file.write_text(config_to_yaml(load_config(overrides=overrides)), encoding="utf-8")
        assert load_config([file]) == load_config(overrides=overrides)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(entries(KEYS.keys() - COSTLY))
def test_a_run_begins_or_is_refused_in_a_line(overrides):
    AcceleratorState._reset_state(reset_partial_state=True)
    small = ("train.global_batch_size=8", "train.micro_batch_size=4", "train.epochs=3")
    assert "\n" not in refusal(lambda: dry_run(load_config(overrides=tiny(*small, *overrides))))


def test_data_in_a_folder_at_hand_whose_name_is_not_unicode_are_refused(tmp_path, monkeypatch):
    """Their name goes into the report and the card, which would be noticed at the end of the run."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"data.path must name data in Unicode, got 'caf\\udce9': give a link to them"):
        load_config(overrides=["data.path=."])


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000, "a\0b"], ids=["long", "deep", "zero byte"])
@pytest.mark.parametrize(
    "override",
    ["data.path={}", "data.path=hfds/{}", "data.path={}.safetensors", "data.path=. data.train_split={}",
     "model.name={}", "model.weights={}", "train.distill_from={}", "train.distill_from=local-dir:{}"],
)  # fmt: skip
def test_what_the_system_does_not_take_for_a_path_is_refused_in_a_line(override, name):
    AcceleratorState._reset_state(reset_partial_state=True)
    message = refusal(lambda: dry_run(load_config(overrides=tiny(*override.format(name).split()))))
    assert message.strip()
    assert "\n" not in message


def test_so_is_such_a_config_or_checkpoint(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        assert "does not exist" in refusal(lambda name=name: load_config([name]))
        chosen = refusal(lambda name=name: choose_checkpoint(name, tmp_path))
        assert "there is no such folder" in chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "JSONDecodeError"), (b"", "JSONDecodeError"), (b"[]", "TypeError"), (b"{}", "KeyError: 'architecture'"),
        (b'{"architecture": 3}', "architecture must be text"), (b'{"architecture": "x\xe9"}', "UnicodeDecodeError"),
        (b'{"architecture": "x", "model_args": [1]}', "model_args a mapping"),
        (b'{"architecture": "x"}', "are those of another model: set model.name=x"),
    ],
)  # fmt: skip
def test_weights_that_nothing_describes_are_refused_in_a_line(text, message, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "config.json").write_bytes(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    said = refusal(lambda: dry_run(load_config(overrides=tiny(f"model.weights={tmp_path}"))))
    assert message in said
    assert "\n" not in said
