"""What is decoded once is read again only while the files are the same."""

import logging
import os

import pytest
import torch
from accelerate.state import AcceleratorState
from filelock import FileLock
from forks import FORKS
from pictures import draw_folder
from PIL import Image
from runs import TINY
from test_packed import assert_same_batches, batches_of
from test_sources import pack as to_tars

from affnorm_zoo.config import DataConfig, load_config
from affnorm_zoo.data import cache, in_memory
from affnorm_zoo.data.images import Images
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import dry_run


def files_of(root):
    return sorted(root.glob(".affnorm_zoo-*.safetensors"))


@pytest.fixture
def decoded(monkeypatch):
    """The images that were decoded since the last look."""
    seen, original = [], Images.__getitem__

    def getitem(self, index):
        seen.append(self.name(index))
        return original(self, index)

    monkeypatch.setattr(Images, "__getitem__", getitem)
    return seen


def loaded(decoded, config):
    """The batches of a run, and how many images were decoded for them; opening looks at all 24 of the validation."""
    decoded.clear()
    _, _, batches = batches_of(config)
    return batches, len(decoded) - 24


def test_a_dry_run_writes_none(tmp_path):
    root = draw_folder(tmp_path / "pictures")
    AcceleratorState._reset_state(reset_partial_state=True)
    dry_run(
        load_config(
            overrides=[
                *TINY,
                "train.global_batch_size=24",
                "train.micro_batch_size=24",
                f"data.path={root}",
                "data.cache=true",
            ]
        )
    )
    assert sorted(path.name for path in root.iterdir()) == ["train", "val"]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_second_run_decodes_nothing_and_gets_the_same(kind, tmp_path, decoded):
    root = draw_folder(tmp_path / "pictures")
    path = str(root) if kind == "folder" else to_tars(root)
    expected, count = loaded(decoded, DataConfig(path=path, hflip=0.5, crop_pct=0.9))
    assert count == 48
    config = DataConfig(path=path, hflip=0.5, crop_pct=0.9, cache=True)
    for count in (48, 0):
        found, number = loaded(decoded, config)
        assert number == count
        assert_same_batches(found, expected)
    part = DataConfig(path=path, hold_out=5, cache=True)
    found, number = loaded(decoded, part)
    assert number + 24 == 5 + 24  # opening looks at those held out; the split is decoded once more as evaluation does
    assert_same_batches(found, loaded(decoded, DataConfig(path=path, hold_out=5))[0])


def test_a_changed_file_is_decoded_again(tmp_path, decoded):
    root = draw_folder(tmp_path / "pictures")
    config = DataConfig(path=str(root), cache=True)
    loaded(decoded, config)
    (train, val) = files_of(root)
    assert (train.name.split("-")[1], val.name.split("-")[1]) == ("train", "val")
    file = root / "train/red/3.png"
    times = file.stat()
    Image.new("RGB", (16, 16), (9, 9, 9)).save(file)
    found, number = loaded(decoded, config)
    assert number == 24
    assert_same_batches(found, loaded(decoded, DataConfig(path=str(root)))[0])
    assert files_of(root) == [train, val]  # the old content has been replaced
    os.utime(file, ns=(times.st_atime_ns, file.stat().st_mtime_ns + 1))
    assert loaded(decoded, config)[1] == 24
    file.rename(root / "train/red/renamed.png")
    assert loaded(decoded, config)[1] == 24
    assert loaded(decoded, config)[1] == 0


def test_another_size_or_crop_has_a_file_of_its_own(tmp_path, decoded):
    root = draw_folder(tmp_path / "pictures")
    for settings, number in (({}, 48), ({"image_size": 8}, 48), ({"crop_pct": 0.5}, 24), ({}, 0)):
        config = DataConfig(path=str(root), **settings)
        found, count = loaded(decoded, DataConfig(path=str(root), cache=True, **settings))
        assert count == number
        assert_same_batches(found, batches_of(config)[2])


def test_a_damaged_cache_is_made_again(tmp_path, decoded):
    root = draw_folder(tmp_path / "pictures")
    config = DataConfig(path=str(root), cache=True)
    expected, _ = loaded(decoded, config)
    for damage in (b"", b"nonsense", files_of(root)[0].read_bytes()[:-1]):
        files_of(root)[0].write_bytes(damage)
        found, number = loaded(decoded, config)
        assert number == 24
        assert_same_batches(found, expected)
    assert loaded(decoded, config)[1] == 0


def refuse(*args, **kwargs):
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("place", [(FileLock, "acquire"), (cache, "save_whole")], ids=["lock", "file"])
def test_a_folder_that_cannot_be_written_to_is_no_error(place, tmp_path, decoded, monkeypatch, caplog):
    root = draw_folder(tmp_path / "pictures")
    config = DataConfig(path=str(root), cache=True)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(*place, refuse)
        for _ in range(2):
            found, number = loaded(decoded, config)
            assert number == 48
            assert_same_batches(found, batches_of(DataConfig(path=str(root)))[2])
    assert "Read-only file system" in caplog.text
    assert not files_of(root)
    loaded(decoded, config)
    monkeypatch.setattr(*place, refuse)  # a cache that is there is read without a lock
    assert loaded(decoded, config)[1] == 0


def test_replaced_images_are_not_kept(tmp_path, decoded):
    root = draw_folder(tmp_path / "pictures")
    (root / "train/red/0.png").write_bytes(b"no picture")
    loaded(decoded, DataConfig(path=str(root), cache=True, max_bad_images=1))
    assert [path.name.split("-")[1] for path in files_of(root)] == ["val"]
    with pytest.raises(UsageError, match=r"red/0.png cannot be decoded"):
        loaded(decoded, DataConfig(path=str(root), cache=True))


def load_in_child(root, barrier, results):
    calls, decode = [], in_memory.decode
    in_memory.decode = lambda dataset, *rest: (calls.append(1), decode(dataset, *rest))[1]
    barrier.wait(60)
    _, train, _ = batches_of(DataConfig(path=root, cache=True))
    results.put((len(calls), train.images.numpy()))


def test_one_process_decodes_while_the_others_wait(tmp_path):
    root = draw_folder(tmp_path / "pictures", per_class=40)
    barrier, results = FORKS.Barrier(3), FORKS.Queue()
    children = [FORKS.Process(target=load_in_child, args=(str(root), barrier, results)) for _ in range(3)]
    for child in children:
        child.start()
    found = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
    assert sum(count for count, _ in found) == 2  # the training and the validation images, each by one of the three
    expected = batches_of(DataConfig(path=str(root)))[1].images
    assert all(torch.equal(torch.from_numpy(images), expected) for _, images in found)
    assert not list(root.glob("*.tmp"))


@pytest.mark.parametrize("path", [None, "hfds/name", "wds/folder"])
def test_a_cache_needs_files_to_lie_beside(path):
    with pytest.raises(UsageError, match=r"data.cache=true needs a folder or tar"):
        DataConfig(path=path, cache=True)
