"""Tars, Hugging Face datasets and odd files; what is wrong with data is said before a model is built."""

import io
import math
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
from affnorm_zoo.data.images import to_rgb
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


def encode(image, kind, **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
ODD = {
    "grey": (encode(Image.fromarray(RAMP), "png"), RAMP),
    "16 bits": (encode(Image.fromarray(RAMP.astype(np.uint16) * 257), "png"), RAMP),
    "RGBA": (encode(Image.fromarray(np.dstack([RAMP] * 3 + [RAMP])), "png"), RAMP),
    "palette": (encode(Image.fromarray(RAMP).convert("P"), "png"), RAMP),
    "animation": (
        encode(Image.fromarray(RAMP), "webp", lossless=True, save_all=True,
               append_images=[Image.fromarray(255 - RAMP)]),
        RAMP,
    ),
    "bilevel": (encode(Image.fromarray(RAMP).point(lambda v: 255 * (v > 99)).convert("1"), "png"), 255 * (RAMP > 99)),
    "grey and alpha": (encode(Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]), "png"), RAMP),
    "transparent palette": (
        encode(Image.fromarray(RAMP).convert("P"), "png", transparency=bytes(range(256))),
        RAMP,
    ),
    "transparent colour": (encode(Image.fromarray(RAMP).convert("RGB"), "png", transparency=(7, 7, 7)), RAMP),
    "16 bits, big-endian": (encode(Image.fromarray(RAMP.astype(">u2") * 257), "tiff"), RAMP),
    "16 bits of PGM": (b"P5 16 16 65535\n" + (RAMP.astype(">u2") * 257).tobytes(), RAMP),
    "32-bit integers of 8 bits": (encode(Image.fromarray(RAMP.astype(np.int32)), "tiff"), RAMP),
    "32-bit integers of 8 bits, dark": (encode(Image.fromarray(RAMP.astype(np.int32) // 4), "tiff"), RAMP // 4),
    "32-bit integers of 12 bits": (encode(Image.fromarray(RAMP.astype(np.int32) * 4095 // 255), "tiff"), RAMP),
    "32-bit integers of 31 bits": (encode(Image.fromarray(RAMP.astype(np.int32) * 8421504), "tiff"), RAMP),
    "real numbers up to 1": (encode(Image.fromarray(RAMP.astype(np.float32) / 255), "tiff"), RAMP),
    "real numbers up to 255": (encode(Image.fromarray(RAMP.astype(np.float32)), "tiff"), RAMP),
    "real numbers up to 65535": (encode(Image.fromarray(RAMP.astype(np.float32) * 257), "tiff"), RAMP),
    "real numbers up to 1/4096": (encode(Image.fromarray(RAMP.astype(np.float32) / 255 / 4096), "tiff"), RAMP),
    "black real numbers": (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "tiff"), np.zeros((4, 4), np.uint8)),
    "one pixel": (encode(Image.new("RGB", (1, 1), (9, 9, 9)), "png"), np.full((1, 1), 9, np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_images_become_the_rgb_they_show(kind):
    data, expected = ODD[kind]
    image = np.asarray(to_rgb(Image.open(io.BytesIO(data))))
    assert image.shape == (*expected.shape, 3)
    assert np.abs(image.astype(int) - expected[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour"),
    [
        ("CMYK", (0, 255, 255, 0)), ("YCbCr", (82, 90, 240)), ("HSV", (0, 255, 255)), ("LAB", (138, 208, 198)),
        ("RGBX", (255, 0, 0, 0)), ("RGBa", (255, 0, 0, 255)),
    ],
)  # fmt: skip
def test_red_is_red_in_every_colour_space(mode, colour):
    image = to_rgb(Image.new(mode, (4, 4), colour))
    assert image.mode == "RGB"
    red, green, blue = np.asarray(image)[0, 0].astype(int)
    assert red > 200 > 60 > max(green, blue)
    jpeg = encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "jpeg")
    assert np.asarray(to_rgb(Image.open(io.BytesIO(jpeg))))[0, 0].argmax() == 0


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, math.nan], [0.0, math.inf]], ids=str)
def test_values_without_a_scale_are_refused_by_name(values, tmp_path):
    root = draw_folder(tmp_path / "pictures")
    Image.fromarray(np.array([values], dtype=np.float32)).save(root / "val/blue/0.tif")
    with pytest.raises(UsageError, match=r"image blue/0.tif cannot be decoded .*32-bit values go from .* 8 bits"):
        open_source(DataConfig(path=str(root)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_pictures_are_turned_upright_as_exif_says(kind, orientation):
    upright = np.zeros((24, 48), np.uint8)
    upright[:8, :8] = 255  # a white corner at the top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Pillow's transposition that it undoes
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image if orientation == 1 else image.transpose(Image.Transpose(undo[orientation]))
    found = np.asarray(to_rgb(Image.open(io.BytesIO(encode(stored, kind, exif=exif)))))
    assert found.shape == (24, 48, 3)
    assert np.abs(found[..., 0].astype(int) - upright).mean() < 2  # JPEG and WebP lose a little at the edges


def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encode(Image.fromarray(RAMP), "png", exif=b"Exif\0\0MM\0*" + b"\xff" * 20)
    assert np.array_equal(np.asarray(to_rgb(Image.open(io.BytesIO(data))))[..., 0], RAMP)


@pytest.mark.parametrize("content", [b"this is text", encode(Image.fromarray(RAMP), "png")[:50]])
def test_a_file_that_is_no_image_stops_an_evaluation_by_name(content, tmp_path):
    root = draw_folder(tmp_path / "pictures")
    (root / "val/red/3.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"red/3.png cannot be decoded .*remove it"):
        open_source(DataConfig(path=str(root)))


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
