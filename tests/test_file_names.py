"""Files of any name are read, kept and named on one line; archives that are not read are named too."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from pictures import draw_folder

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import open_source
from affnorm_zoo.data.cache import cached
from affnorm_zoo.errors import UsageError

ODD = {"line break": (b"a\nb", r"a\nb"), "not Unicode": (b"caf\xe9", r"caf\udce9"), "tab": (b"a\tb", r"a\tb")}


def write(folder, name, content):
    (folder / os.fsdecode(name)).write_bytes(content)


@pytest.fixture(params=ODD)
def odd(request):
    return ODD[request.param]


def test_a_picture_of_an_odd_name_counts_and_can_be_kept(odd, tmp_path):
    root = draw_folder(tmp_path)
    write(root / "train/red", odd[0] + b".png", (root / "train/red/0.png").read_bytes())
    source = open_source(DataConfig(path=str(root)))
    assert source.num_train == 25
    calls = []

    def decode():
        calls.append(1)
        return torch.zeros(25, 3, 2, 2, dtype=torch.uint8), torch.zeros(25, dtype=torch.int64)

    for _ in range(2):
        cached(source.train, "whole", decode)
    assert len(calls) == 1


def test_a_bad_one_is_named_on_one_line(odd, tmp_path, caplog):
    root = draw_folder(tmp_path / "photos")
    write(root / "train/blue", odd[0] + b".png", b"no picture")
    strict = open_source(DataConfig(path=str(root))).train
    position = strict.reader.names.index(f"blue/{os.fsdecode(odd[0])}.png")
    with pytest.raises(UsageError) as caught:
        strict[position]
    assert str(caught.value).startswith(f"image blue/{odd[1]}.png cannot be decoded (")
    lenient = open_source(DataConfig(path=str(root), max_bad_images=1)).train
    lenient.bad.keep_in(tmp_path / "bad_images.txt")
    with caplog.at_level(logging.WARNING):
        lenient[position]
    assert (tmp_path / "bad_images.txt").read_text(encoding="utf-8") == f"{position}\tblue/{odd[1]}.png\n"
    assert len(lenient.bad) == 1
    assert f"image blue/{odd[1]}.png cannot" in caplog.text


def test_so_is_one_that_is_passed_over(odd, tmp_path, caplog):
    root = draw_folder(tmp_path)
    write(root / "train/red", odd[0] + b".txt", b"x")
    open_source(DataConfig(path=str(root)))
    assert f"1 of 25 files were not read: 1 .txt (red/{odd[1]}.txt)" in caplog.text


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_an_archive_that_is_not_read_is_named_with_what_to_do(kind, tmp_path):
    root = draw_folder(tmp_path)
    name = shutil.make_archive(str(root / "train"), kind, root / "train")
    shutil.rmtree(root / "train")
    file = Path(name).name
    with pytest.raises(UsageError, match=f"it has val, but {file}: unpack it, as no archive is read but an uncomp"):
        open_source(DataConfig(path=str(root)))
