"""Tars, Hugging Face datasets and odd files; what is wrong with data is said before a model is built."""

import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from pictures import CLASSES, draw_folder
from PIL import Image
from timm.data.auto_augment import AugmentOp, posterize

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.data.presets import PRESETS
from affnorm_zoo.data.transforms import _augment_ops, train_transform
from affnorm_zoo.errors import UsageError

CFG = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop_pct": 1.0}


def pack(root):
    """The folder's splits as one tar each."""
    packed = root.with_name("packed")
    packed.mkdir()
    for split in ("train", "val"):
        with tarfile.open(packed / f"{split}.tar", "w") as tar:
            for name in CLASSES:
                tar.add(root / split / name, arcname=name)
    return str(packed)


def to_dataset(root, labels=None):
    """The folder as a dataset saved in parquet files."""
    splits = {}
    for split in ("train", "val"):
        files = sorted((root / split).rglob("*.png"))
        splits[split] = Dataset.from_dict(
            {
                "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
                "label": labels or [CLASSES.index(file.parent.name) for file in files],
            },
            features=Features(image=ImageFeature(), label=ClassLabel(names=list(CLASSES))),
        )
    target = root.with_name("dataset")
    target.mkdir()
    for split, dataset in DatasetDict(splits).items():
        dataset.to_parquet(target / f"{split}-00000-of-00001.parquet")
    return f"hfds/{target}"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def batch_of(config):
    source = open_source(config)
    preprocessing = resolve_preprocessing(config, source, CFG)
    ((images, labels),) = eval_loader(source.val, preprocessing, batch_size=100, workers=0)
    return source, images, labels


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["tar", "hfds"])
def test_the_same_pictures_come_out_of_every_container(kind, tmp_path, offline):
    root = draw_folder(tmp_path / "pictures")
    source, images, labels = batch_of(DataConfig(path=str(root)))
    path = pack(root) if kind == "tar" else to_dataset(root, None)
    if kind == "hfds":
        other, others, other_labels = batch_of(DataConfig(path=path, val_split="validation"))
    else:
        other, others, other_labels = batch_of(DataConfig(path=path))
    assert other.class_names == source.class_names == CLASSES
    assert other.describe() == source.describe()

    def content(images, labels):
        return sorted((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    assert content(images, labels) == content(others, other_labels)


def test_folders_may_hold_webp_and_bmp(tmp_path):
    for split in ("train", "val"):
        for number, name in enumerate(("a", "b")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for kind in ("webp", "bmp", "PNG"):
                Image.new("RGB", (8, 8), (200 * number, 9, 9)).save(folder / f"{number}.{kind}")
            (folder / "notes.txt").write_text("no image")
    source = open_source(DataConfig(path=str(tmp_path), val_split="val"))
    assert (source.num_train, source.num_val) == (6, 6)
    assert np.asarray(source.train[5][0])[0, 0, 0] > 190


def test_tars_are_read_by_several_workers(tmp_path):
    config = DataConfig(path=pack(draw_folder(tmp_path / "pictures", per_class=40)))
    source = open_source(config)
    preprocessing = resolve_preprocessing(config, source, CFG)
    alone = torch.cat([images for images, _ in eval_loader(source.val, preprocessing, batch_size=5)])
    shared = torch.cat([images for images, _ in eval_loader(source.val, preprocessing, batch_size=5, workers=2)])
    assert torch.equal(alone, shared)


def test_what_is_wrong_with_a_dataset_is_said(tmp_path, offline):
    root = draw_folder(tmp_path / "pictures")
    with pytest.raises(UsageError, match=r"data.train_split=train: hfds/.* cannot be read"):
        open_source(DataConfig(path=f"hfds/{tmp_path}/nothing"))
    path = to_dataset(root)
    with pytest.raises(UsageError, match=r"data.val_split=vall: .* cannot be read: .*vall"):
        open_source(DataConfig(path=path, val_split="vall"))
    shutil.rmtree(root.with_name("dataset"))
    path = to_dataset(root, [0] * 24)
    with pytest.raises(UsageError, match=r"has no images of 2 classes, such as green, red"):
        open_source(DataConfig(path=path, val_split="validation"))


def test_labels_outside_the_classes_are_refused(tmp_path):
    root = draw_folder(tmp_path / "pictures")
    source = open_source(DataConfig(path=str(root)))
    source.val.num_classes = 2
    with pytest.raises(UsageError, match="has label 2, outside the 2 classes"):
        source.val[len(source.val) - 1]


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m15-mstd0.5-inc1", "v0", "augmix-m5-w4-d2"])
def test_posterize_to_black_does_not_end_a_run(policy, tmp_path):
    config = DataConfig(crop="resized", auto_augment=policy)
    source = open_source(DataConfig())
    preprocessing = resolve_preprocessing(config, source, {**CFG, "input_size": (3, 8, 8)})
    transform = train_transform(config, preprocessing)
    ops = [op for op in _augment_ops(transform) if "Posterize" in op.name]
    assert ops or policy.startswith("augmix")
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    for op in ops:
        assert np.asarray(op.aug_fn(image, 0)).max() == 0
        assert np.array_equal(np.asarray(op.aug_fn(image, 3)), np.asarray(posterize(image, 3)))


def test_the_posterize_of_others_is_left_alone():
    op = AugmentOp("Posterize")
    assert op.aug_fn is posterize


def test_posterize_is_only_touched_where_pillow_refuses(monkeypatch):
    from affnorm_zoo.data import transforms

    monkeypatch.setattr(transforms, "posterize", lambda image, bits, **_: image)
    config = DataConfig(crop="resized", auto_augment="rand-m9")
    preprocessing = resolve_preprocessing(config, open_source(DataConfig()), {**CFG, "input_size": (3, 8, 8)})
    assert all(
        op.aug_fn is not transforms._posterize_or_black for op in _augment_ops(train_transform(config, preprocessing))
    )


def test_presets_stand_between_config_and_model():
    source = replace(open_source(DataConfig()), in_chans=3)
    preprocessing = resolve_preprocessing(DataConfig(preset="cifar10", std=(1.0, 1.0, 1.0)), source, CFG)
    assert preprocessing.mean == PRESETS["cifar10"].mean
    assert preprocessing.std == (1.0, 1.0, 1.0)
    assert preprocessing.input_size[-1] == 32
    with pytest.raises(UsageError, match=r"data.preset='cifar' is not known: choose one of cifar10"):
        resolve_preprocessing(DataConfig(preset="cifar"), source, CFG)
