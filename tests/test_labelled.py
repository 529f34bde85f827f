"""Images with any number of classes each: every form of the CSV says the same."""

import shutil

import numpy as np
import pytest
from labels import FORMS, opened, rows_of, write
from pictures import CLASSES, draw_labelled, picture
from runs import refusal


def content(dataset):
    """Pixels and labels by name."""
    found = {}
    for number in range(len(dataset)):
        image, label = dataset[number]
        found[dataset.name(number).rpartition("/")[2]] = (np.asarray(image).tobytes(), label.tolist())
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form, tmp_path, caplog):
    expected = opened(draw_labelled(tmp_path / "one", train=20, val=6))
    root = draw_labelled(tmp_path / "two", train=20, val=6)
    found = opened(root, form(root))
    assert (found.num_train, found.num_val, found.class_names) == (20, 6, CLASSES)
    for split in ("train", "val"):
        assert content(getattr(found, split)) == content(getattr(expected, split))
    assert not caplog.records  # above all none on the CSV


def test_a_path_may_be_in_both_splits_and_needs_a_row_in_its_own(tmp_path):
    for name in ("train/a.png", "train/b.png", "val/a.png"):
        picture(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file_name,split,cat,dog\na.png,train,1,0\nb.png,train,0,1\na.png,val,1,1\n")
    source = opened(tmp_path)
    assert {name: label for name, (_, label) in content(source.train).items()} == {"a.png": [1, 0], "b.png": [0, 1]}
    assert {name: label for name, (_, label) in content(source.val).items()} == {"a.png": [1, 1]}
    picture(tmp_path / "val/b.png")
    assert "val holds 1 images without a row in data.labels, such as b.png" in refusal(lambda: opened(tmp_path))


def test_labels_are_those_of_the_file(tmp_path):
    root = draw_labelled(tmp_path, train=20, val=6)
    source = opened(root)
    labels = {name: label for part in (source.train, source.val) for name, (_, label) in content(part).items()}
    assert labels == {
        row["file_name"].rpartition("/")[2]: [float(row[name]) for name in CLASSES] for row in rows_of(root)
    }


def test_the_hash_follows_every_label_and_nothing_else(tmp_path):
    root = draw_labelled(tmp_path / "one", train=20, val=6)
    before = opened(root).describe()
    assert opened(shutil.copytree(root, tmp_path / "moved")).describe() == before
    rows = rows_of(root)
    write(root / "labels.csv", rows[::-1])
    assert opened(root).describe() == before
    for number in (0, 25):  # of training and of validation
        changed = [dict(row) for row in rows]
        changed[number]["red"] = str(1 - int(changed[number]["red"]))
        write(root / "labels.csv", changed)
        assert opened(root).describe()["labels_sha256"] != before["labels_sha256"]


def test_rows_of_other_splits_cover_their_images_and_are_told_of(tmp_path, caplog):
    root = draw_labelled(tmp_path, train=20, val=6)
    rows = rows_of(root)
    write(root / "labels.csv", rows[:18] + [{**row, "split": "test"} for row in rows[18:20]] + rows[20:])
    assert opened(root).num_train == 18
    assert [record.getMessage() for record in caplog.records] == [
        f"{root / 'labels.csv'}: rows of other splits are not used: 2 of 'test'"
    ]


def test_images_are_held_out_with_their_labels(tmp_path):
    root = draw_labelled(tmp_path, train=20, val=6)
    source, whole = opened(root, hold_out=5), content(opened(root).train)
    held = [source.val[number] for number in range(5)]
    assert source.num_train == 15
    assert all((np.asarray(image).tobytes(), label.tolist()) in whole.values() for image, label in held)
