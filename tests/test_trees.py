"""A tar is listed as the folder that unpacking it gives: the same pictures, labels and messages."""

import io
import os
import random
import tarfile

import pytest
from pictures import content

from affnorm_zoo.data.index import open_index

NAMES = ("a", "b", ".store", "__MACOSX", "1.png", "2.jpg", "notes.txt")


def grow(folder, draw, depth=0):
    """A random tree of folders, files, and links to whatever the tree may or may not hold."""
    for name in draw.sample(NAMES, draw.randint(2, len(NAMES))):
        path = folder / name
        if draw.random() < 0.35:
            up, down = ["..", *[".."] * depth][: draw.randint(0, depth + 1)], draw.choices((*NAMES, ".", ".."), k=2)
            path.symlink_to("/".join([*up, *down][: draw.randint(1, depth + 3)]))
        elif "." in name[1:]:
            path.write_bytes(str(path).encode() if draw.random() < 0.9 else b"")
        else:
            path.mkdir()
            if depth < 3:
                grow(path, draw, depth + 1)


def cut_links_from_elsewhere(split):
    """Remove links to above the folder that holds the split, which a tar does not know."""
    for path in sorted(split.rglob("*")):
        if path.is_symlink() and not os.path.realpath(path).startswith(str(split.parent)):
            path.unlink()


def add(tar, name, content=b"", kind=tarfile.REGTYPE):
    """Add a file of these bytes, or a link of this kind to a path."""
    member = tarfile.TarInfo(name)
    member.type, data = kind, content if kind == tarfile.REGTYPE else b""
    member.size, member.linkname = len(data), "" if kind == tarfile.REGTYPE else content
    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("seed", range(60))
def test_a_tar_is_listed_as_what_it_unpacks_to(seed, tmp_path):
    split = tmp_path / "photos/train"
    for name in ("cat", "dog"):  # so that each tree has two classes and a picture
        (split / name).mkdir(parents=True)
        (split / name / "0.png").write_bytes(name.encode())
    grow(split, random.Random(seed))
    cut_links_from_elsewhere(split)
    index, passed = open_index(split)
    packed = tmp_path / "train.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(split, arcname=".")
    from_tar, passed_in_tar = open_index(packed)
    assert content(from_tar) == content(index)
    assert from_tar.class_names == index.class_names
    assert passed_in_tar == passed


SOFT, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


def list_members(tmp_path, *members, top=""):
    """What is read of a tar with two classes and further members, as names and bytes, and what is passed over."""
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("cat", "dog"):
            add(tar, f"{top}{name}/0.png", name.encode())
        for name, more, *kind in members:
            add(tar, name, more, *kind)
    index, passed = open_index(path)
    return {name: data for name, _, data in content(index) if name not in ("cat/0.png", "dog/0.png")}, passed


def test_a_linked_folder_in_a_tar_is_entered_under_the_name_of_the_link(tmp_path):
    found, passed = list_members(
        tmp_path, (".store/a/deep/1.png", b"one"), ("bird", ".store/a", SOFT), ("crow", "./.store/../bird", SOFT),
        ("cat/2.png", "../bird/deep/1.png", SOFT),
    )  # fmt: skip
    assert found == {"bird/deep/1.png": b"one", "crow/deep/1.png": b"one", "cat/2.png": b"one"}
    assert passed == "folders that were not entered: 1 hidden (.store)"


@pytest.mark.parametrize(
    ("link", "kind", "target", "said"),
    [
        ("cat/up", SOFT, "..", "a link back"),
        ("cat/self", SOFT, ".", "a link back"),
        ("cat/across", SOFT, "../dog", "a link back"),
        ("cat/above", SOFT, "../..", "a link back"),
        ("cat/whole", SOFT, "../../train", "a link back"),
        ("cat/loop", SOFT, "loop", "a link to no file"),
        ("cat/absolute.png", SOFT, "/cat/0.png", "a link to no file"),
        ("cat/elsewhere.png", SOFT, "../../../cat/0.png", "a link to no file"),
        ("cat/through.png", SOFT, "0.png/../0.png", "a link to no file"),
        ("cat/folder", HARD, "cat", "a link to no file"),
        ("cat/later.png", HARD, "cat/9.png", "a link to no file"),
    ],
)
def test_a_link_in_a_tar_that_leads_to_no_new_picture_is_named(link, kind, target, said, tmp_path):
    found, passed = list_members(tmp_path, (link, target, kind), ("cat/9.png", b"nine"))
    assert found == {"cat/9.png": b"nine"}
    assert f"1 {said} ({link})" in passed


def test_a_hard_link_keeps_the_file_that_was_there_when_it_was_made(tmp_path):
    found, _ = list_members(tmp_path, ("cat/1.png", "cat/0.png", HARD), ("cat/0.png", b"new"))
    assert found == {"cat/1.png": b"cat"}


def test_what_lies_beside_the_folder_that_a_tar_is_of_is_named_and_may_be_linked_to(tmp_path):
    found, passed = list_members(
        tmp_path, (".store/1.png", b"one"), ("README.txt", b"x"), ("train/cat/1.png", "../../.store/1.png", SOFT),
        ("train/bird", "../.store", SOFT), top="train/",
    )  # fmt: skip
    assert found == {"cat/1.png": b"one", "bird/1.png": b"one"}
    assert "1 .txt (README.txt); folders that were not entered: 1 hidden (.store)" in passed


def test_a_hidden_file_that_is_called_a_tar_is_not_opened(tmp_path):
    """macOS's tar writes such a companion for every file."""
    found, passed = list_members(tmp_path, ("cat/._birds.tar", b"Mac OS X"))
    assert not found
    assert "1 hidden (cat/._birds.tar)" in passed


def test_folders_may_lie_deeper_than_calls(tmp_path):
    name = f"cat/{'d/' * 1500}1.png"
    assert list_members(tmp_path, (name, b"deep"))[0] == {name: b"deep"}
