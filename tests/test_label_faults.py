"""What is wrong with a CSV of labels is named in a line, with its place and what to do."""

import csv

import pytest
from labels import in_a_list, in_two_files, opened, rows_of, write
from pictures import CLASSES, draw_labelled, picture
from runs import refusal

from affnorm_zoo.config import DataConfig, load_config
from affnorm_zoo.data import pack
from affnorm_zoo.errors import UsageError


def row(line, text):
    """Replace a line of the file; the header is the first."""

    def edit(root):
        lines = (root / "labels.csv").read_text().splitlines()
        lines[line - 1 : line] = text.splitlines()
        (root / "labels.csv").write_text("\n".join(lines) + "\n")

    return edit


def everything(text):
    return lambda root: (root / "labels.csv").write_text(text)


def column(name, value):
    def edit(root):
        write(root / "labels.csv", [{**row, name: value} for row in rows_of(root)])

    return edit


def without(name):
    return lambda root: write(
        root / "labels.csv", [{key: value for key, value in row.items() if key != name} for row in rows_of(root)]
    )


HEAD = "file_name,split,blue,green,red"
FAULTS = {
    "no file": (lambda root: (root / "labels.csv").unlink(), "labels.csv cannot be read: No such file or directory"),
    "a folder": (
        lambda root: (root / "labels.csv").unlink() or (root / "labels.csv").mkdir(), "cannot be read: Is a directory",
    ),
    "not UTF-8": (lambda root: (root / "labels.csv").write_bytes(b"\xff\xfe\0"), "labels.csv must be UTF-8"),
    "no CSV": (row(2, '"images/0.png'), "labels.csv is not a CSV: unexpected end of data"),
    "empty": (everything(""), "labels.csv:1: there must be a column file_name, .* the header has nothing"),
    "other header": (row(1, "name,split,a,b,c"), "labels.csv:1: there must be a column file_name, .* has name, split"),
    "no split": (without("split"), r"labels.csv:1: there must be a column split; or give each .* with {split} in"),
    "a name twice": (row(1, "file_name,split,red,green,red"), "labels.csv:1: each column .* own, got 'red'"),
    "no name": (row(1, "file_name,split,,green,red"), "labels.csv:1: each column must have a name of its own, got ''"),
    "both forms": (column("labels", "red"), "labels.csv:1: keep either the column labels or one .* got also blue, gre"),
    "one class": (everything("file_name,split,red\nimages/0.png,train,1\n"), "must name at least two classes, got red"),
    "short row": (row(3, "images/1.png,train,1"), "labels.csv:3: there must be 5 values, as in the header, got 3"),
    "a word": (row(3, "images/1.png,train,1,yes,0"), "labels.csv:3: the column 'green' must hold 0 or 1, got 'yes'"),
    "unknown image": (
        row(3, "images/one.png,train,1,0,0"),
        r"holds 1 images without a row in data.labels, such as images/1.png: add rows, without labels for an image",
    ),
    "no image": (
        row(3, "images/1.png,train,1,0,0\nimages/one.png,train,1,0,0"),
        "labels.csv:4: there is no image 'images/one.png' below .*: correct the path, .* or remove the row",
    ),
    "not a picture": (
        lambda root: (picture(root / "images/1.png"), (root / "images/1.png").write_bytes(b"")),
        r"labels.csv:3: images/1.png is not read \(empty\) below",
    ),
    "twice": (
        row(4, "images/1.png,val,1,0,0"), r"labels.csv:4: images/1.png in .* has a row already, .*labels.csv:3: keep",
    ),
    "no such split": (column("split", "train"), "data.val_split: .* has no rows of the split 'val'; it has train"),
    "never shown": (
        column("green", "0"), "no image of the split 'train' shows 1 of the 3 classes, such as green: add images",
    ),
    "nothing shown": (
        lambda root: write(
            root / "labels.csv",
            [{**row, **(dict.fromkeys(CLASSES, "0") if row["split"] == "val" else {})} for row in rows_of(root)],
        ),
        "no image of the split 'val' shows any class: add labels",
    ),
    "half in folders": (lambda root: (root / "train").mkdir(), "data.val_split: .* has no folder 'val' and no val.tar"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(fault, tmp_path):
    damage, message = FAULTS[fault]
    root = draw_labelled(tmp_path, train=20, val=6)
    damage(root)
    with pytest.raises(UsageError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)


LISTED_FAULTS = {
    "an empty name": (" red||blue", r"train.csv:2: labels must be names between '\|', each once, got ' red\|\|blue'"),
    "a name twice": ("red|red", "each once, got 'red|red'"),
}


@pytest.mark.parametrize("fault", LISTED_FAULTS)
def test_so_is_it_in_a_list(fault, tmp_path):
    cell, message = LISTED_FAULTS[fault]
    root = draw_labelled(tmp_path, train=20, val=6)
    in_a_list(root)
    labels = in_two_files(root)
    rows = [{**row, "labels": cell} for row in csv.DictReader((root / "train.csv").open(newline=""))]
    write(root / "train.csv", rows)
    with pytest.raises(UsageError, match=message):
        opened(root, labels)


def test_files_of_two_splits_must_agree(tmp_path):
    root = draw_labelled(tmp_path, train=20, val=6)
    labels = in_two_files(root)
    text = (root / "val.csv").read_text()
    (root / "val.csv").write_text(text.replace("blue,green", "blue,cyan", 1))
    with pytest.raises(UsageError, match=r"val.csv:1: the columns must be those of .*train.csv"):
        opened(root, labels)
    (root / "val.csv").write_text((root / "train.csv").read_text())
    with pytest.raises(UsageError, match=r"val.csv:2: images/0.png in .* has a row already, .*train.csv:2: keep one"):
        opened(root, labels)
    write(root / "val.csv", [{"split": "val", "file_name": "x"}])
    with pytest.raises(UsageError, match=r"val.csv:1: remove the column split, as {split} in data.labels says whose"):
        opened(root, labels)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.task=multilabel", "data.path=x"], "data.task=multilabel needs data.labels, a CSV with the labels"),
        (["data.labels=x.csv", "data.path=x"], "data.labels=x.csv needs data.task=multilabel"),
        (["data.task=multilabel", "data.labels=x"], "needs a folder or tars of images, got data.path=None"),
        (["data.task=multilabel", "data.labels=x", "data.path=hfds/x"], "a folder or tars of images, got data.path=hf"),
        (["data.task=multilabel", "data.labels=x", "data.path=x", "optim.loss=ce"], "optim.loss=ce is for one class"),
        (["data.task=multilabel", "data.labels=x", "data.path=x", "train.distill_from=x"], "needs data.task=classifi"),
        (
            ["data.task=multilabel", "data.labels=x", "data.path=x", "checkpoint.best_metric=val.top1"],
            "must be one of val.map, val.micro_f1, val.macro_f1, val.loss, ema.map, .*, got 'val.top1'",
        ),
        (["checkpoint.best_metric=val.map"], "must be one of val.top1, .* got 'val.map'"),
        (["data.hub_id=cifar10"], "data.hub_id must be ORG/NAME or ORG/NAME:TASK, got 'cifar10'"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        load_config(overrides=overrides)


def test_it_is_not_packed(tmp_path):
    root = draw_labelled(tmp_path, train=8, val=8)
    config = DataConfig(path=str(root), task="multilabel", labels=str(root / "labels.csv"))
    assert "a packed file holds one class per image" in refusal(lambda: pack(config, tmp_path / "a.safetensors"))
