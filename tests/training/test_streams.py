"""WebDataset shards: every image once, exact from the end of an epoch, and nothing lost in silence."""

import json
import tarfile

import pytest
from forks import run_forked
from pictures import draw_folder
from runs import TINY, assert_same_run, checkpoints, kill_at, state, train_here

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub import export_run
from affnorm_zoo.training import PreemptedError

CFG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.2,) * 3, "crop_pct": 1.0}
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def shards(root, count=4, per_class=32):
    """Pictures of three classes in shards, with the info file that timm reads."""
    pictures = draw_folder(root / "pictures", per_class=per_class)
    folder, info = root / "shards", {}
    folder.mkdir()
    for split in ("train", "val"):
        files = sorted((pictures / split).rglob("*.png"), key=lambda file: (file.stem, file.parent.name))
        names = [f"{split}-{number:04d}.tar" for number in range(count)]
        for number, name in enumerate(names):
            with tarfile.open(folder / name, "w") as tar:
                for index, file in enumerate(files[number::count]):
                    key = f"{number:02d}{index:04d}"
                    tar.add(file, arcname=f"{key}.png")
                    label = folder / "label.cls"
                    label.write_text(str(["blue", "green", "red"].index(file.parent.name)))
                    tar.add(label, arcname=f"{key}.cls")
                    label.unlink()
        lengths = [len(files[number::count]) for number in range(count)]
        info[split] = {"name": split, "num_samples": len(files), "filenames": names, "shard_lengths": lengths}
    (folder / "_info.json").write_text(json.dumps({"splits": info}))
    return f"wds/{folder}"


def options(path):
    return (
        f"data.path={path}", "data.num_classes=3", "data.workers=2", "data.image_size=16", "data.hflip=0.5",
        "train.epochs=3", "train.global_batch_size=16", "train.micro_batch_size=8", "model.kwargs.drop_rate=0.1",
    )  # fmt: skip


def test_a_stream_trains_and_resumes_from_the_end_of_an_epoch(tmp_path, monkeypatch):
    arguments = options(shards(tmp_path))
    report = train_here(tmp_path / "whole", *arguments)
    assert report["num_train_images"] == 96
    assert report["val"]["num_images"] == 96
    assert report["val"]["top1"] > 0.5
    exported = json.loads((export_run(tmp_path / "whole") / "config.json").read_text())
    assert "label_names" not in {**exported, **exported["pretrained_cfg"]}  # shards do not name their classes
    with monkeypatch.context() as patch:
        kill_at(patch, 9)
        with pytest.raises(PreemptedError):
            train_here(tmp_path / "stopped", *arguments)
    assert checkpoints(tmp_path / "stopped") == ["best", "window_00000006"]
    train_here(tmp_path / "stopped", *arguments, resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_two_processes_share_it(tmp_path):
    run_forked("scripts/train.py", *TINY, *options(shards(tmp_path)), "--output", tmp_path / "run", processes=2)
    assert state(tmp_path / "run")["state"] == "completed"
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["val"]["num_images"] == 96
    assert report["windows"] == 18


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (2, 1), (3, 2)])
def test_validation_sees_every_image_once(world_size, workers, tmp_path):
    config = DataConfig(path=shards(tmp_path, per_class=7), num_classes=3)
    labels = []
    for rank in range(world_size):
        source = open_source(config)
        preprocessing = resolve_preprocessing(config, source, CFG)
        loader = eval_loader(source.val, preprocessing, batch_size=4, workers=workers, rank=rank, world_size=world_size)
        labels += [label for _, batch in loader for label in batch.tolist()]
    assert sorted(labels) == [0] * 7 + [1] * 7 + [2] * 7


def test_an_image_that_timm_would_leave_out_is_missed(tmp_path):
    config = DataConfig(path=shards(tmp_path, per_class=7), num_classes=3)
    source = open_source(config)
    preprocessing = resolve_preprocessing(config, source, CFG)
    source.val.num_images = 22
    with pytest.raises(UsageError, match="21 of the 22 validation images of the shards could be read"):
        list(eval_loader(source.val, preprocessing, batch_size=4))


def test_what_is_missing_is_said(tmp_path):
    path = shards(tmp_path)
    with pytest.raises(UsageError, match=r"set data.num_classes"):
        open_source(DataConfig(path=path))
    with pytest.raises(UsageError, match=r"data.val_split=dev: .* cannot be read: split dev not found"):
        open_source(DataConfig(path=path, num_classes=3, val_split="dev"))
    with pytest.raises(UsageError, match=r"data.workers to at least 1"):
        train_here(tmp_path / "run", *options(path), "data.workers=0")
    with pytest.raises(UsageError, match="a WebDataset stream is not"):
        train_here(tmp_path / "run", *options(path), "data.repeats=2")
    with pytest.raises(UsageError, match=r"label of the stream is 2, outside the data.num_classes=2"):
        train_here(tmp_path / "other", *options(path), "data.num_classes=2")
