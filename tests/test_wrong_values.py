"""Each field of a config refuses, by name and in a line, what is wrong in kind, in range or beside other fields."""

from dataclasses import fields
from typing import get_type_hints

import pytest
from accelerate.state import AcceleratorState
from runs import refusal, tiny

from affnorm_zoo.config import RunConfig, load_config
from affnorm_zoo.config.text import without_none
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import dry_run

HINTS = {
    f"{section.name}.{field.name}": get_type_hints(section.default_factory)[field.name]
    for section in fields(RunConfig)
    for field in fields(section.default_factory)
}
# words that no field of the kind takes; text takes them all
OTHER_KINDS = {
    int: ["x", "2.5", "true", "[1]", "{a: 1}", "1:30", ".inf"],
    float: ["x", "true", "[1]", "{a: 1}", "1:30", ".inf", "-.inf", ".nan", "1e400"],
    bool: ["x", "3", "0", "[true]", "{a: 1}", "null"],
    tuple: ["x", "3", "true", "{a: 1}", "[[1]]", "[{a: 1}]"],
    dict: ["x", "3", "true", "[1]", "null"],
}
# what lies just outside the range, and what lies at its ends
RANGES = {
    "model.ema_decay": (["0", "1"], ["1e-9", "0.999999"]),
    "data.num_classes": (["1", "-1"], ["2"]),
    "data.hold_out": (["-1"], ["0", "1"]),
    "data.image_size": (["0", "-1"], ["1"]),
    "data.mean": (["[-0.001]", "[1.001]", "[.nan]", "[0.5, true]"], ["[0]", "[1]"]),
    "data.std": (["[0]", "[9e-5]", "[1.001]", "[.inf]"], ["[1e-4]", "[1]"]),
    "data.crop_pct": (["0.099", "1.001"], ["0.1", "1"]),
    "data.hflip": (["-0.001", "1.001"], ["0", "1"]),
    "data.erase": (["-0.001", "1.001"], ["0", "1"]),
    "data.mixup": (["-0.001"], ["0", "1e9"]),
    "data.cutmix": (["-0.001"], ["0", "1e9"]),
    "data.mixup_off_epoch": (["0", "20"], ["1", "19"]),
    "data.repeats": (["0", "65"], ["1", "64"]),
    "data.workers": (["-1", "1025"], ["0", "1024"]),
    "data.timeout_seconds": (["0"], ["1"]),
    "data.max_bad_images": (["-1"], ["0", "1"]),
    "optim.lr": (["0", "-1"], ["1e-300"]),
    "optim.lr_base": (["0", "-1"], ["1e-300"]),
    "optim.lr_base_size": (["0"], ["1"]),
    "optim.momentum": (["-0.001", "1"], ["0", "0.999"]),
    "optim.weight_decay": (["-1e-9"], ["0"]),
    "optim.layer_decay": (["0", "1.001"], ["1e-9", "1"]),
    "optim.warmup_epochs": (["-0.001", "20"], ["0", "19.9"]),
    "optim.min_lr": (["-1e-9", "4e-3"], ["0", "3.9e-3"]),
    "optim.clip_grad": (["0"], ["1e-9"]),
    "optim.label_smoothing": (["-0.001", "1"], ["0", "0.999"]),
    "train.epochs": (["0"], ["2"]),
    "train.global_batch_size": (["0"], ["1"]),
    "train.micro_batch_size": (["0"], ["1"]),
    "train.seed": (["-1", "4294967296"], ["0", "4294967295"]),
    "train.eval_epochs": (["0"], ["1"]),
    "train.max_updates": (["0"], ["1"]),
    "train.max_skips": (["0"], ["1"]),
    "train.distill_temperature": (["0.009", "1001"], ["0.01", "1000"]),
    "checkpoint.every_epochs": (["0"], ["1"]),
    "checkpoint.every_minutes": (["0"], ["1e-9"]),
    "checkpoint.every_updates": (["0"], ["1"]),
    "checkpoint.keep_last": (["0"], ["1"]),
    "checkpoint.milestones": (["[0]", "[21]", "[1, 2.5]"], ["[]", "[1, 20]"]),
    "runtime.log_updates": (["0"], ["1"]),
    "runtime.divergence_updates": (["0"], ["1"]),
    "runtime.divergence_images": (["1"], ["2"]),
}
# what must stand beside a field for it to mean anything
BESIDE = {
    "data.mixup_off_epoch": "data.mixup=1",
    "data.max_bad_images": "data.path=x",
    "optim.lr_base": "optim.lr=null",
    "train.max_skips": "train.non_finite=skip",
    "train.distill_temperature": "train.distill_from=x",
    "runtime.divergence_images": "runtime.divergence_updates=1",
}


def kind_of(key):
    hint = without_none(HINTS[key])
    return getattr(hint, "__origin__", hint)


def refused(key, value):
    """What is said of one value of a field."""
    message = refusal(lambda: load_config(overrides=[*BESIDE.get(key, "").split(), f"{key}={value}"]))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("key", [key for key in HINTS if kind_of(key) in OTHER_KINDS])
def test_a_field_refuses_every_other_kind(key):
    for value in OTHER_KINDS[kind_of(key)]:
        assert key in refused(key, value), value


@pytest.mark.parametrize("key", [key for key in HINTS if "Literal" in str(HINTS[key])])
def test_a_field_of_words_refuses_others_and_names_its_own(key):
    for value in ("x", "3", "true", "", "[a]"):
        assert key in refused(key, value), value
    assert "'auto'" in refused("runtime.device", "gpu") or "auto" in refused("runtime.device", "gpu")


@pytest.mark.parametrize("key", RANGES)
def test_a_number_has_a_range(key):
    outside, inside = RANGES[key]
    for value in outside:
        assert key in refused(key, value), value
    for value in inside:
        assert not refused(key, value), value


def test_each_field_of_numbers_has_its_range_above():
    numbers = {key for key, hint in HINTS.items() if "int" in str(hint) or "float" in str(hint)}
    assert RANGES.keys() == numbers - {"data.in_memory"}
    for key in numbers:
        if kind_of(key) is int:
            assert key in refused(key, "4294967297"), key


USELESS = {
    "optim.clip_mode=agc": "optim.clip_grad",
    "train.max_skips=3": "train.non_finite=skip",
    "train.distill_temperature=2": "train.distill_from",
    "runtime.divergence_images=3": "runtime.divergence_updates",
    "runtime.compile_mode=default": "runtime.compile=true",
    "data.max_bad_images=1": "images in a folder, a tar or hfds/NAME",
    "data.max_bad_images=1 data.path=wds/x": "images in a folder, a tar or hfds/NAME",
    "data.max_bad_images=1 data.path=x.safetensors": "images in a folder, a tar or hfds/NAME",
    "data.in_memory=always data.path=wds/x": "an indexable dataset",
    "data.cache=true data.path=x data.in_memory=never": "data.in_memory=auto or always",
    "data.cache=true data.path=x.safetensors": "a folder or tar",
    "data.mixup_off_epoch=1": "data.mixup or data.cutmix",
}


@pytest.mark.parametrize("overrides", USELESS)
def test_a_setting_that_nothing_would_use_says_what_it_needs(overrides):
    message = refusal(lambda: load_config(overrides=overrides.split()))
    assert f" needs {USELESS[overrides]}" in message


def test_text_that_cannot_be_unset_is_not_told_to_be():
    assert refused("data.path", "") == "override 'data.path=' has no value; data.path=null unsets it"
    assert refused("data.train_split", "") == "override 'data.train_split=' has no value"


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
        ("data.std=[0]", r"data.std must lie in \[0.0001, 1\]"),
        ("data.num_classes=1", "data.num_classes must be at least 2"),
        ("data.train_split= ", "data.train_split must name a split"),
        ("data.path=hfds/", "data.path names no data"),
        ("data.crop_pct=0.01", r"data.crop_pct must lie in \[0.1, 1\]"),
        ("data.workers=1000000", "data.workers must be at most 1024"),
        ("data.note=caf\udce9", r"data.note must be Unicode, got 'caf\\udce9'"),
        ("data.path=/data/caf\udce9", "data.path must be Unicode"),
        ("runtime.trackers=[a, caf\udce9]", "is not valid YAML|runtime.trackers must be Unicode"),
        ("model.kwargs=[1]", r"model.kwargs: Value '\[1\]' is not a mapping"),
        ("model.kwargs=3", "model.kwargs: "),
        ("data.mean=3", "data.mean: "),
        ("runtime.trackers=[wandb, wandb]", "runtime.trackers must be different"),
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
        (["data.val_split=test"], "data.val_split=test needs data.path, which is not set"),
        (["data.train_split=training"], "data.train_split=training needs data.path, which is not set"),
        (["model.kwargs.checkpoint_path=x.pth"], "model.kwargs.checkpoint_path .* start from model.weights=FOLDER"),
        (["model.kwargs.drop_path_rate=-0.1"], r"model.kwargs.drop_path_rate must lie in \[0, 1\], got -0.1"),
        (["model.kwargs.drop_path_rate=.nan"], r"model.kwargs.drop_path_rate must lie in \[0, 1\], got nan"),
        (["model.kwargs.drop_rate=1.5"], r"model.kwargs.drop_rate must lie in \[0, 1\], got 1.5"),
        (["model.kwargs.output_stride=7"], r"cannot be built .*'output_stride': 7\}: AssertionError"),
        (["model.kwargs.num_classes=0"], "cannot be built with model.kwargs"),
        (["model.name=resnet20_cifar_patchnorm.nothing"], "cannot be built"),
        (["data.mean=[0.5,0.5]"], r"data.mean must hold 1 numbers, one per channel of digits, got \(0.5, 0.5\)"),
        (["data.preset=cifar10"], r"data.mean must hold 1 numbers"),
        (["data.crop=resized", "data.auto_augment=foo"], "data.auto_augment=foo is not timm's notation"),
        (["data.crop=resized", "data.auto_augment=rand-mx"], "data.auto_augment=rand-mx is not timm's notation"),
        (["optim.kwargs={betas: [0.9]}"], "optim.name=adamw with optim.kwargs"),
        (["optim.schedule_kwargs={decay_rate: x}", "optim.schedule=step"], "optim.schedule=step with"),
        (["optim.schedule_kwargs={min_lr: 1}"], "optim.schedule_kwargs.min_lr is set by optim.min_lr"),
        (["optim.schedule_kwargs={cooldown_epochs: 2}"], "cooldown_epochs is set by train.epochs"),
        (["optim.schedule_kwargs={cycle_limit: 2}"], "cycle_limit=2 changes nothing with optim.schedule=cosine"),
        (["optim.schedule_kwargs={decay_rate: 0.5}"], "decay_rate=0.5 changes nothing with optim.schedule=cosine"),
        (["optim.schedule_kwargs={noise_seed: 3}"], "noise_seed=3 changes nothing"),
        (["optim.schedule_kwargs={warmup_lr: 1e-4}", "optim.warmup_epochs=0"], "warmup_lr=0.0001 changes nothing"),
        (["optim.schedule=constant", "optim.schedule_kwargs={decay_epochs: 1}"], "decay_epochs=1 changes nothing"),
        (["optim.schedule=constant", "optim.min_lr=1e-4"], "optim.min_lr=0.0001 changes nothing with"),
        (["optim.schedule=constant", "optim.warmup_epochs=0", "optim.min_lr=1e-4"], "min_lr=0.0001 changes nothing"),
        (["optim.schedule=step"], "makes no step within train.epochs=2: set optim.schedule_kwargs.decay_epochs"),
        (["optim.schedule=multistep"], "no step within train.epochs=2: set optim.schedule_kwargs.decay_milest"),
        (["optim.schedule_kwargs={noise: 0, noise_pct: 0}"], "noise_pct=0 must be positive"),
        (["optim.schedule_kwargs={noise: 0, noise_std: .nan}"], "noise_std=nan at most 100 times"),
        (["optim.schedule_kwargs={noise: 0, noise_pct: x}"], "noise_pct=x must be positive"),
        (["optim.schedule_kwargs={warmup_lr: 1}"], "starts at a learning rate of 1, outside 0 to 0.001"),
        (["optim.schedule=step", "optim.schedule_kwargs={decay_rate: 2, decay_epochs: 0.5}"], "ends at a learning"),
        (["optim.lr=null", "optim.lr_base=1", "optim.lr_base_size=1000000", "optim.min_lr=0.1"], "ends at a learning"),
        (["model.name=resnet18_cifar_batchnorm", "model.kwargs.layers=[1,1,1,1]", "train.global_batch_size=2",
          "train.micro_batch_size=1"],
         "cannot be trained on a batch of 1, .* more than 1 value per channel"),
    ],
)  # fmt: skip
def test_a_combination_that_does_not_fit_is_named(overrides, message):
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UsageError, match=message) as caught:
        dry_run(load_config(overrides=tiny(*overrides)))
    assert "\n" not in str(caught.value)


def test_one_image_left_over_is_no_matter_where_pixels_are_left_too():
    AcceleratorState._reset_state(reset_partial_state=True)
    left = ("train.global_batch_size=1436", "train.micro_batch_size=359", "data.drop_last=false")
    dry_run(load_config(overrides=tiny("model.name=resnet20_cifar_batchnorm", *left, "train.epochs=3")))
