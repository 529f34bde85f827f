"""Whatever a config says, the answer before the first step is a run or one line."""

import math
import os
from dataclasses import fields
from typing import get_type_hints

import pytest
from accelerate.state import AcceleratorState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import TINY

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


def refusal(action):
    """What is said where the action is refused; empty where it is not."""
    try:
        action()
    except UsageError as error:
        return str(error).strip() or "\n"
    return ""


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
    small = (*TINY, "train.global_batch_size=8", "train.micro_batch_size=4", "train.epochs=3")
    assert "\n" not in refusal(lambda: dry_run(load_config(overrides=[*small, *overrides])))


TEXT = [
    "/data/photos #2", "~", "1:30", "@home/x", "%TEMP%/x", "[set] 1", "x: y", "/data/it's", '"quoted"', "'q'", "0123",
    "1e3", "yes", "Null", "2024-01-01", "- a", "{a: b}", "${HOME}/x", "\\${x}", "a\\\\${b", "!tag", "&a", "*a", "|",
    ">", "a\tb", " a ", "é", "#", "?", "`x`", "=", "a=b",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXT)
def test_text_is_taken_as_it_is_written(text, tmp_path):
    for key in ("path", "note", "train_split", "auto_augment", "preset"):
        config = load_config(overrides=[f"data.{key}={text}", "data.crop=resized"])
        assert getattr(config.data, key) == text
        (tmp_path / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
        assert load_config([tmp_path / "config.yaml"]) == config


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip))
def test_so_is_any_other(text):
    if text != "null" and text != "???":  # with which omegaconf marks what is missing
        assert load_config(overrides=[f"data.note={text}"]).data.note == text


@pytest.mark.parametrize("text", ["1:30", "0123", "yes", "1e3", "2024-01-01", "~", "${HOME}", "0x10", ".5"])
def test_plain_text_in_a_file_is_text_too(text, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        f"data:\n  path: {text}\n  preset: {text}\nruntime:\n  trackers: [{text if '{' not in text else 'x'}]"
    )
    config = load_config([file])
    assert config.data.path == config.data.preset == text
    assert config.runtime.trackers == ((text,) if "{" not in text else ("x",))
    file.write_text("data:\n  path: null\n  preset:\n")
    assert load_config([file]).data.path is load_config([file]).data.preset is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=2.5", "Value '2.5' is not a whole number"),
        ("train.epochs=1:30", "train.epochs: Value '1:30'"),
        ("train.epochs=true", "Value 'True' is not a whole number"),
        ("checkpoint.milestones=[1, 2.5]", "Value '2.5' is not a whole number"),
        ("runtime.compile=3", "Value '3' is neither true nor false"),
        ("optim.lr=", "has no value; optim.lr=null unsets it"),
        ("data.path=", "has no value; data.path=null unsets it"),
        ("optim.lr=inf", "Value 'inf'|must be finite"),
        ("optim.lr=.inf", "optim.lr must be finite, got inf"),
        ("optim.weight_decay=.nan", "optim.weight_decay must be finite"),
        ("optim.momentum=1", r"optim.momentum must lie in \[0, 1\)"),
        ("train.seed=-1", r"train.seed must lie in \[0, 2³²\), got -1"),
        ("train.seed=4294967296", r"train.seed must lie in \[0, 2³²\)"),
        ("train.epochs=2147483648", "train.epochs must be below 2³¹"),
        ("data.mean=[123.7]", r"data.mean must lie in \[0, 1\], as pixels of 0 to 255"),
        ("data.std=[0]", r"data.std must lie in \(0, 1\]"),
        ("data.num_classes=1", "data.num_classes must be at least 2"),
        ("data.train_split= ", "data.train_split must name a split"),
        ("data.path=hfds/", "data.path names no data"),
        ("data.crop_pct=0.01", r"data.crop_pct must lie in \[0.1, 1\]"),
        ("data.workers=1000000", "data.workers must be at most 1024"),
        ("data.note=caf\udce9", r"data.note must be Unicode, got 'caf\\udce9'"),
        ("data.path=/data/caf\udce9", "data.path must be Unicode"),
        ("runtime.trackers=[a, caf\udce9]", "is not valid YAML|runtime.trackers must be Unicode"),
        ("model.kwargs=[1]", "model.kwargs: Cannot merge"),
        ("model.kwargs=3", "model.kwargs: "),
        ("data.mean=3", "data.mean: "),
        ("model.kwargs={a: 1", "is not valid YAML"),
        ("model.kwargs=&a {b: *a}", "model.kwargs"),
        ("model.kwargs={a: 1, a: 2}", "the key 'a' is there twice"),
    ],
)
def test_a_value_of_a_wrong_kind_or_range_is_named(override, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_config(overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=vit_nano_patch4_32_affinelike", "data.image_size=64"], "set model.kwargs.img_size=64"),
        (["model.kwargs.features_only=true"], "is not a classifier of 10 classes"),
        (["model.kwargs.global_pool=''"], "does not take images of 1 x 8 x 8: mat1 and mat2"),
        (["model.kwargs.num_classes=0"], "cannot be built with model.kwargs"),
        (["model.name=resnet20_cifar_patchnorm.nothing"], "cannot be built"),
        (["data.mean=[0.5,0.5]"], r"data.mean must hold 1 numbers, one per channel of digits, got \(0.5, 0.5\)"),
        (["data.preset=cifar10"], r"data.mean must hold 1 numbers"),
        (["data.crop=resized", "data.auto_augment=foo"], "data.auto_augment=foo is not timm's notation"),
        (["data.crop=resized", "data.auto_augment=rand-mx"], "data.auto_augment=rand-mx is not timm's notation"),
        (["optim.kwargs={betas: [0.9]}"], "optim.name=adamw with optim.kwargs"),
        (["optim.schedule_kwargs={decay_rate: x}", "optim.schedule=step"], "optim.schedule=step with"),
        (["optim.schedule_kwargs={min_lr: 1}"], "optim.schedule_kwargs.min_lr is set by optim.min_lr"),
        (["optim.schedule_kwargs={warmup_lr: 1}"], "starts at a learning rate of 1, outside 0 to 0.001"),
        (["optim.schedule=step", "optim.schedule_kwargs={decay_rate: 2, decay_epochs: 0.5}"], "ends at a learning"),
        (["optim.lr=null", "optim.lr_base=1", "optim.lr_base_size=1000000", "optim.min_lr=0.1"], "ends at a learning"),
        (["model.name=resnet18_cifar_batchnorm", "train.global_batch_size=2", "train.micro_batch_size=1"],
         "cannot be trained on a batch of 1, .* more than 1 value per channel"),
    ],
)  # fmt: skip
def test_a_combination_that_does_not_fit_is_named(overrides, message):
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UsageError, match=message) as caught:
        dry_run(load_config(overrides=[*TINY, *overrides]))
    assert "\n" not in str(caught.value)


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
    message = refusal(lambda: dry_run(load_config(overrides=[*TINY, *override.format(name).split()])))
    assert message.strip()
    assert "\n" not in message


def test_so_is_such_a_config_or_checkpoint(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        assert "does not exist" in refusal(lambda name=name: load_config([name]))
        chosen = refusal(lambda name=name: choose_checkpoint(name, tmp_path))
        assert "there is no such folder" in chosen


def test_one_image_left_over_is_no_matter_where_pixels_are_left_too():
    AcceleratorState._reset_state(reset_partial_state=True)
    left = ("train.global_batch_size=1436", "train.micro_batch_size=359", "data.drop_last=false")
    dry_run(load_config(overrides=[*TINY, "model.name=resnet20_cifar_batchnorm", *left, "train.epochs=3"]))


@pytest.mark.parametrize(
    "text",
    ["data: {path: [a]}", "data: {path: {a: b}}", "train:", "3", "data: [1]", "? [1]\n: 2", "? {a: 1}\n: 2", "null: 3",
     "x: &a [*a]", "data: {note: !!python/name:os.system ''}", "<<: 3", "\0", "a: b\n---\nc: d",
     "data: {path: @home/x}",
     "data: {path: [set] 1}", "data:\n  path: x: y", "data:\n  path: %TEMP%", "checkpoint: {milestones: [1:30]}"],
)  # fmt: skip
def test_a_file_that_means_nothing_is_refused_in_a_line(text, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert "config.yaml" in refusal(lambda: load_config([file]))
    assert "\n" not in refusal(lambda: load_config([file]))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_a_config_must_be_utf_8(encoding, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data:\n  note: café\n", encoding=encoding)
    if encoding == "utf-8-sig":
        assert load_config([file]).data.note == "café"
        return
    with pytest.raises(UsageError, match=r"config.yaml must be UTF-8: .*byte 0x"):
        load_config([file])
