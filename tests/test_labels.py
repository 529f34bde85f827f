"""Weights that know their classes meet data that name theirs: by name, or not at all."""

import json
import logging

import pytest
import timm
import torch
from parts import parts_of
from pictures import CLASSES, draw_folder
from runs import SMALL_VIT, invoke, train_here
from safetensors.torch import load_file, save_file

from affnorm_zoo.cli.divergence import divergence
from affnorm_zoo.cli.evaluate import evaluate
from affnorm_zoo.data import Source
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import match_labels
from affnorm_zoo.hub import export_run
from affnorm_zoo.training import assemble as assembling

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WEIGHTS = "resnet20_cifar_patchnorm.c10_e10"
PICTURES = ("data.image_size=16", "train.global_batch_size=12", "train.micro_batch_size=12", "train.epochs=4")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """An export of a few updates on three colours, and the folder of their pictures."""
    folder = tmp_path_factory.mktemp("labels")
    pictures = draw_folder(folder / "pictures")
    report = train_here(folder / "run", f"data.path={pictures}", *PICTURES)
    assert report["val"]["top1"] > 0.5  # so that another order would be seen
    return export_run(folder / "run"), pictures, report["val"]["top1"]


def reordered(export, target, order):
    """The same function with its outputs, and their names, in another order."""
    target.mkdir()
    weights = load_file(export / "model.safetensors")
    for name in ("fc.weight", "fc.bias"):
        weights[name] = weights[name][order].clone()
    save_file(weights, target / "model.safetensors")
    config = json.loads((export / "config.json").read_text())
    config["label_names"] = [config["label_names"][index] for index in order]
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_the_same_names_in_another_order_are_matched(export, tmp_path, caplog):
    folder, pictures, top1 = export
    other = reordered(folder, tmp_path / "other", [2, 0, 1])
    for name in (folder, other):
        measured = json.loads(invoke(evaluate, name, f"data.path={pictures}").stdout.splitlines()[-1])
        assert measured["top1"] == top1
    assert "are in another order than those of pictures: matched by name" in caplog.text
    wrong = invoke(evaluate, other, f"data.path={pictures}", "--labels-by-position").stdout.splitlines()[-1]
    assert json.loads(wrong)["top1"] < top1
    layers = ("--images", 4, "--steps", 1, f"data.path={pictures}", "--output")
    for name in (folder, other):
        assert invoke(divergence, name, *layers, tmp_path / f"{name.name}.json").exit_code == 0
    one, two = (json.loads((tmp_path / f"{n.name}.json").read_text())["models"][str(n)] for n in (folder, other))
    first, last = ([row["factor"]["mean"] for row in result["layers"]] for result in (one, two))
    assert first == pytest.approx(last, rel=1e-4)
    assert [row["cosine"]["mean"] for row in one["layers"]] == pytest.approx(
        [row["cosine"]["mean"] for row in two["layers"]], abs=1e-4
    )


@pytest.mark.parametrize("command", [evaluate, divergence])
def test_other_names_are_an_error_that_shows_both(command, export, tmp_path):
    folder, _, _ = export
    others = draw_folder(tmp_path / "animals", classes=("blue", "cat", "dog"))
    result = invoke(command, folder, f"data.path={others}")
    assert result.exit_code == 2
    assert (
        "of the data animals differ: the weights know 'green', 'red', the data have 'cat', 'dog'; "
        "data.labels_by_position=true matches them by position instead"
    ) in result.output
    assert len(result.output.strip().splitlines()) == 1
    accepted = invoke(evaluate, folder, f"data.path={others}", "--labels-by-position")
    assert json.loads(accepted.stdout.splitlines()[-1])["num_images"] == 24


def test_so_it_is_with_weights_of_the_package(tmp_path):
    others = draw_folder(tmp_path / "letters", classes=tuple("abcdefghij"), per_class=2, size=32)
    result = invoke(evaluate, WEIGHTS, f"data.path={others}")
    assert result.exit_code == 2
    assert (
        "the weights know 'airplane', 'automobile', 'bird', 'cat', 'deer' and 5 more, the data have 'a'"
        in result.output
    )
    own = draw_folder(tmp_path / "cifar", classes=CIFAR10, per_class=2, size=32)
    assert invoke(evaluate, WEIGHTS, f"data.path={own}").exit_code == 0


def small_parts(*overrides):
    return parts_of("data.image_size=32", "train.global_batch_size=4", "train.micro_batch_size=4", *overrides)


@torch.no_grad()
def test_fine_tuning_begins_from_outputs_that_mean_the_same(tmp_path, monkeypatch, caplog):
    own = draw_folder(tmp_path / "cifar", classes=CIFAR10, per_class=2, size=32)
    start = (f"model.name={WEIGHTS}", "model.pretrained=true", f"data.path={own}")
    x = torch.randn(3, 3, 32, 32)
    expected = timm.create_model(WEIGHTS, pretrained=True).eval()(x)
    assert torch.equal(small_parts(*start).trainer.state.bare_model.eval()(x), expected)

    original = assembling.open_source

    def reversed_names(config):
        source = original(config)
        return Source(name="upside", train=source.train, val=source.val, class_names=source.class_names[::-1])

    monkeypatch.setattr(assembling, "open_source", reversed_names)
    with caplog.at_level(logging.WARNING):
        found = small_parts(*start).trainer.state.bare_model.eval()(x)
    torch.testing.assert_close(found, expected.flip(1), rtol=1e-5, atol=1e-5)  # sums of 64 terms in float32
    assert "matched by name" in caplog.text
    by_position = small_parts(*start, "data.labels_by_position=true").trainer.state.bare_model.eval()(x)
    assert torch.equal(by_position, expected)


def test_fine_tuning_on_other_classes_is_an_error_or_by_position():
    digits = (f"model.name={WEIGHTS}", "model.pretrained=true", "data.image_size=8")
    with pytest.raises(UsageError, match=r"the weights know 'airplane', .* and 5 more, the data have '0', '1', .*"):
        small_parts(*digits)
    small_parts(*digits, "data.labels_by_position=true")


def test_fewer_classes_are_a_new_classifier(tmp_path):
    pictures = draw_folder(tmp_path / "pictures")
    model = small_parts(
        f"model.name={WEIGHTS}", "model.pretrained=true", f"data.path={pictures}"
    ).trainer.state.bare_model
    assert model.get_classifier().out_features == len(CLASSES)


def test_another_number_of_classes_is_an_error_that_shows_both(export, tmp_path):
    folder, _, _ = export
    for command in (evaluate, divergence):
        result = invoke(command, folder, f"data.path={draw_folder(tmp_path / command.name, classes=('blue', 'pink'))}")
        assert result.exit_code == 2
        assert (
            f"the model has 3 classes, but {command.name} has 2: the weights know 'green', 'red', the data have 'pink'"
            in result.output
        )


def test_class_names_in_a_form_of_others_are_refused():
    model = torch.nn.Linear(1, 2)
    model.num_classes, model.pretrained_cfg = 2, {"label_names": {"a": 0, "b": 1}}
    source = Source(name="letters", train=(), val=(), class_names=("a", "b"))
    with pytest.raises(UsageError, match=r"label_names of the weights must be a list, or keyed by number: .*'a'"):
        match_labels("it", model, source, by_position=False)
    model.pretrained_cfg["label_names"] = "ab"
    with pytest.raises(UsageError, match=r"label_names of the weights must be a list, or keyed by number, got 'ab'"):
        match_labels("it", model, source, by_position=False)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, None), (["a", "b"], None), (["b", "a"], [1, 0]), ({"1": "a", "0": "b"}, [1, 0]), (["a"], None),
        (["a", "b", "c"], None),
    ],
)  # fmt: skip
def test_names_are_compared_where_both_sides_have_them(names, expected, caplog):
    model = torch.nn.Linear(1, 2)
    model.num_classes, model.pretrained_cfg = 2, {"label_names": names}
    source = Source(name="letters", train=(), val=(), class_names=("a", "b"))
    assert match_labels("it", model, source, by_position=False) == expected
    others = names is not None and len(names) != 2
    assert (f"label_names of the weights are not compared: {len(names or '')} for 2 classes" in caplog.text) == others
    assert match_labels("it", model, source, by_position=True) is None
    stream = Source(name="shards", train=(), val=(), class_names=("0", "1"), has_names=False)
    assert match_labels("it", model, stream, by_position=False) is None


def test_weights_are_measured_on_pixels_as_they_were_trained(tmp_path, caplog):
    report = train_here(tmp_path / "run", "data.mean=[0.9]", "data.std=[0.1]", "train.max_updates=5")
    export = export_run(tmp_path / "run")
    measured = json.loads(invoke(evaluate, export).stdout)
    assert measured["loss"] == pytest.approx(report["val"]["loss"], rel=1e-5)
    assert not caplog.records
    json.loads(invoke(evaluate, export, "data.mean=[0.305]").stdout.splitlines()[-1])
    assert "was trained with the mean (0.9,) and is measured with (0.305,)" in caplog.text


def test_a_vit_is_measured_at_another_size_too(tmp_path):
    train_here(tmp_path / "run", *SMALL_VIT, "train.max_updates=1")
    row = json.loads(invoke(evaluate, export_run(tmp_path / "run"), "data.image_size=16").stdout.splitlines()[-1])
    assert (row["img_size"], row["num_images"]) == (16, 360)
    result = invoke(evaluate, tmp_path / "run/export", "data.image_size=3")
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
