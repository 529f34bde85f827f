"""Which classes data have, in which order, and under which name the data themselves go."""

import os
import random
import tarfile
import unicodedata

import pytest
from pictures import content, draw_folder, picture, splits
from timm.data.readers import create_reader

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import open_source
from affnorm_zoo.data.index import open_index
from affnorm_zoo.errors import UsageError


def test_order_and_labels_are_those_of_timms_readers(tmp_path):
    """So that runs made with them see the same images at the same seeds."""
    draw = random.Random(0)
    for name in ("n1", "n2", "n10", "Z", "a b", "a"):
        for _ in range(40):
            picture(tmp_path / "train" / name / f"{draw.choice(('a', 'B', 'c 1 '))}{draw.random()}.png")
    index, _ = open_index(tmp_path / "train")
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    reader = create_reader("", root=str(tmp_path / "train"), class_map={name: i for i, name in enumerate(names)})
    theirs = [reader.filename(number) for number in range(len(reader))]
    assert index.names == theirs
    assert index.class_names == tuple(names)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in draw.sample(theirs, len(theirs)):
            tar.add(tmp_path / "train" / name, arcname=name)
    packed, _ = open_index(tmp_path / "train.tar")
    reader = create_reader("", root=str(tmp_path / "train.tar"), cache_tarinfo=False)
    assert packed.names == theirs == [reader.filename(number) for number in range(len(reader))]
    assert content(packed) == content(index)


def test_names_that_are_no_numbers_to_python_are_sorted_too(tmp_path):
    names = [f"cat/{name}.png" for name in ("1²3", "٣", "10", "9")]
    index, _ = open_index(splits(tmp_path, *names) / "train")
    assert set(index.names) == {"cat/0.png", "dog/0.png", *names}


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for split, names in {"train": ("cat", composed), "val": ("cat", decomposed, composed)}.items():
        for name in names:
            picture(tmp_path / split / name / "0.png")
    source = open_source(DataConfig(path=str(tmp_path)))
    assert source.class_names == (composed, "cat")
    assert [source.val[number][1] for number in range(3)] == [0, 0, 1]


def test_a_class_whose_name_is_not_unicode_is_refused(tmp_path):
    root = splits(tmp_path)
    picture(root / "train" / os.fsdecode(b"caf\xe9") / "0.png")
    with pytest.raises(UsageError, match="has a name that is not UTF-8: rename it"):
        open_index(root / "train")


def test_a_number_of_classes_that_the_data_do_not_have_is_refused(tmp_path):
    draw_folder(tmp_path)
    with pytest.raises(UsageError, match=r"data.num_classes=5, but .* has 3 classes"):
        open_source(DataConfig(path=str(tmp_path), num_classes=5))
    with pytest.raises(UsageError, match=r"data.num_classes=5, but digits has 10 classes"):
        open_source(DataConfig(num_classes=5))


def test_a_tar_beside_its_folder_is_named_as_not_read(tmp_path, caplog):
    root = splits(tmp_path / "photos")
    (root / "train.tar").write_bytes(b"")
    open_source(DataConfig(path=str(root)))
    assert f"{root / 'train'} is read, and {root / 'train.tar'} beside it is not" in caplog.text


@pytest.mark.parametrize("path", [".", "./", "..", "photos/.", "photos/../photos", "~/photos", "/"])
def test_data_have_a_name_however_their_path_is_written(path, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path if "photos" in path else folder)
    expected = {"/": "data", "..": tmp_path.name}.get(path, "photos")
    for kind in ("", "hfds/", "wds/"):
        assert DataConfig(path=kind + path).name == expected
