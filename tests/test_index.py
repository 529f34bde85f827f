"""Every picture of a split is read under its class's label, or named; folders and tars alike."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import content, pack, picture, splits

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import open_source
from affnorm_zoo.data.index import open_index
from affnorm_zoo.data.listing import picture_extensions
from affnorm_zoo.errors import UsageError

KINDS = [
    kind for kind in ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "jp2", "ppm", "tga")
    if f".{kind}" in picture_extensions()
]  # fmt: skip


@pytest.fixture(params=["folder", "tar", "tar of the folder"])
def container(request):
    """Turns a folder of splits into what is tested."""
    return {"folder": lambda root: root, "tar": pack, "tar of the folder": lambda root: pack(root, "./")}[request.param]


def path_of(root, split="train"):
    return root / split if (root / split).is_dir() else root / f"{split}.tar"


def test_every_kind_of_still_picture_counts_in_capitals_too(tmp_path, container):
    names = [f"{name}/{number}.{kind}" for name in ("a", "b") for number, kind in enumerate(KINDS)]
    for split in ("train", "val"):
        for number, name in enumerate(names):
            path = picture(tmp_path / "photos" / split / name, value=250 * (name[0] == "b"))
            if number % 2:
                path.rename(path.with_suffix(path.suffix.upper()))
    source = open_source(DataConfig(path=str(container(tmp_path / "photos"))))
    assert source.num_train == source.num_val == len(names) >= 20
    for index in range(source.num_train):
        image, label = source.train[index]
        assert (np.asarray(image)[..., 0].mean() > 125) == label


def test_a_class_is_the_first_folder_below_the_split(tmp_path, container):
    root = splits(tmp_path / "photos", "cat/2024/may/1.png", "dog/2024/may/1.png", "dog/cat/1.png")
    index, passed = open_index(path_of(container(root)))
    assert index.class_names == ("cat", "dog")
    assert [(name, int(label)) for name, label in zip(index.names, index.targets, strict=True)] == [
        ("cat/0.png", 0), ("cat/2024/may/1.png", 0), ("dog/0.png", 1), ("dog/2024/may/1.png", 1), ("dog/cat/1.png", 1),
    ]  # fmt: skip
    assert not passed


def test_what_is_passed_over_is_named_once_by_reason(tmp_path, container, caplog, monkeypatch):
    names = ("cat/._0.png", "cat/.ipynb_checkpoints/1.png", "__MACOSX/cat/2.png", "dog/__MACOSX/3.png", "stray.png",
             *(f"cat/{number}.heic" for number in range(3)))  # fmt: skip
    root = splits(tmp_path / "photos", *names)
    for split in ("train", "val"):
        (root / split / "dog/notes.TXT").write_text("no picture")
        (root / split / "dog/README").write_text("no picture")
        (root / split / "dog/empty.jpg").touch()
        (root / split / "dog/broken.jpg").symlink_to("nowhere.jpg")
    root = container(root)
    source = open_source(DataConfig(path=str(root)))
    assert source.class_names == ("cat", "dog")
    assert source.num_train == source.num_val == 2
    expected = (
        "9 of 11 files were not read: 3 .heic (such as cat/0.heic), 1 .txt (dog/notes.TXT), 1 a link to no file "
        "(dog/broken.jpg), 1 empty (dog/empty.jpg), 1 hidden (cat/._0.png), 1 outside the class folders (stray.png), "
        "1 without an extension (dog/README); folders that were not entered: 3 hidden (such as __MACOSX)"
    )
    assert [record.getMessage() for record in caplog.records] == [
        f"{path_of(root, split)}: {expected}" for split in ("train", "val")
    ]
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    open_source(DataConfig(path=str(root)))
    assert not caplog.records


def test_a_split_of_unreadable_files_says_what_they_are(tmp_path, container):
    root = splits(tmp_path / "photos")
    for file in root.rglob("*.png"):
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(UsageError, match=r"train.* holds no images: 2 of 2 files were not read: 2 .heic \(such as cat"):
        open_source(DataConfig(path=str(container(root))))


def test_an_empty_class_is_an_error_and_an_empty_hidden_folder_is_none(tmp_path, container):
    root = splits(tmp_path / "photos")
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "val/bird").mkdir()
    (root / "train/bird").mkdir()
    with pytest.raises(UsageError, match=r"split 'train' has no images of 1 classes, such as bird"):
        open_source(DataConfig(path=str(container(root))))


def test_links_are_followed_but_not_in_circles(tmp_path):
    root, elsewhere = splits(tmp_path / "photos"), tmp_path / "elsewhere"
    picture(elsewhere / "more/1.png")
    train = root / "train"
    for link, target in {
        "cat/loop": train, "cat/up": root.parent, "cat/across": train / "dog", "dog/across": train / "cat",
        "cat/self": Path("self"), "cat/more": elsewhere, "elsewhere": tmp_path,
    }.items():  # fmt: skip
        (train / link if link != "elsewhere" else elsewhere / "loop").symlink_to(target)
    (elsewhere / "more/loop").symlink_to(elsewhere)
    (train / "cat/2.png").symlink_to(elsewhere / "more/1.png")
    index, passed = open_index(train)
    assert index.names == ["cat/0.png", "cat/2.png", "cat/more/more/1.png", "dog/0.png"]
    assert "1 of 5 files were not read: 1 a link to no file (cat/self)" in passed
    assert "6 a link back (such as cat/across)" in passed


def test_links_lead_to_pictures_that_are_kept_out_of_sight(tmp_path):
    """As in a store of annexed files, whose folders are linked to under the names of the classes."""
    train = splits(tmp_path / "photos") / "train"
    picture(train / ".store/a/1.png")
    (train / ".store/a/around").symlink_to("../..")
    (train / ".store/a/again").symlink_to(train / ".store/a")
    (train / "bird").symlink_to(".store/a")
    index, passed = open_index(train)
    assert [(name, int(label)) for name, label in zip(index.names, index.targets, strict=True)] == [
        ("bird/1.png", 0), ("cat/0.png", 1), ("dog/0.png", 2)
    ]  # fmt: skip
    assert "folders that were not entered: 2 a link back (such as bird/again), 1 hidden (.store)" in passed


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    root, original = splits(tmp_path / "photos"), os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"the folder .*dog cannot be read: Permission denied"):
        open_index(root / "train")


def add(tar, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def test_tars_may_hold_links_tars_and_later_versions(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        add(tar, "./1.png", b"one")
        add(tar, "deep/2.png", b"two")
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "bird.tar", inner.getvalue())
        add(tar, "./cat/0.png", b"old")
        add(tar, "cat//0.png", b"new")
        add(tar, "cat/hard.png", type=tarfile.LNKTYPE, linkname="cat/0.png")
        add(tar, "cat/soft.png", type=tarfile.SYMTYPE, linkname="../.store/x")
        add(tar, "cat/softer.png", type=tarfile.SYMTYPE, linkname="soft.png")
        add(tar, "cat/broken.png", type=tarfile.SYMTYPE, linkname="../nowhere")
        add(tar, "cat/round.png", type=tarfile.SYMTYPE, linkname="round.png")
        add(tar, "cat/pipe.png", type=tarfile.FIFOTYPE)
        add(tar, ".store/x", b"stored")
    index, passed = open_index(path)
    assert content(pickle.loads(pickle.dumps(index))) == [
        ("bird/1.png", 0, b"one"), ("bird/deep/2.png", 0, b"two"), ("cat/0.png", 1, b"new"),
        ("cat/hard.png", 1, b"new"), ("cat/soft.png", 1, b"stored"), ("cat/softer.png", 1, b"stored"),
    ]  # fmt: skip
    assert "2 a link to no file (such as cat/broken.png), 1 not regular (cat/pipe.png)" in passed


@pytest.mark.parametrize(
    "damage", ["cut in a header", "cut behind a file", "cut in a file", "overwritten", "compressed", "text"]
)
def test_a_damaged_tar_is_an_error(damage, tmp_path):
    root = pack(splits(tmp_path / "photos"))
    path = root / "train.tar"
    with tarfile.open(path) as tar:
        second = tar.getmembers()[2]  # the file in the first folder
    if damage.startswith("cut"):
        ends = {"header": second.offset + 100, "behind": second.offset_data + 512, "file": second.offset_data + 10}
        path.write_bytes(path.read_bytes()[: next(end for word, end in ends.items() if word in damage)])
    elif damage == "overwritten":
        data = bytearray(path.read_bytes())
        data[second.offset : second.offset + 512] = b"x" * 512
        path.write_bytes(data)
    elif damage == "text":
        path.write_text("no tar" * 1000)
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(tmp_path / "photos/train", arcname=".")
    with pytest.raises(UsageError, match=r"train.tar cannot be read as an uncompressed tar"):
        open_source(DataConfig(path=str(root)))
