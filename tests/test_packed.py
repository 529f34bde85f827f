"""One file of decoded images gives what the folder gives, or says why it cannot."""

import json

import numpy as np
import pytest
import torch
from pictures import CLASSES, draw_folder
from PIL import Image
from runs import invoke
from safetensors.torch import load_file, save_file
from torchvision import transforms

from affnorm_zoo.cli.pack import pack as pack_command
from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import (
    ShardedBatches,
    eval_loader,
    open_source,
    pack,
    packed,
    resolve_preprocessing,
    train_loader,
    val_loader,
)
from affnorm_zoo.data.in_memory import InMemoryLoader
from affnorm_zoo.errors import UsageError

CFG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.2,) * 3, "crop_pct": 1.0}


def batches_of(config):
    """Every batch of an epoch, and of the validation set, as a run loads them."""
    source = open_source(config)
    preprocessing = resolve_preprocessing(config, source, CFG)
    batches = ShardedBatches(source.num_train, 12, 6, seed=1)
    batches.set_epoch(2)
    train = train_loader(source, config, batches, preprocessing)
    val = val_loader(source, config, preprocessing, torch.device("cpu"), batch_size=5)
    return source, train, [*train, *val]


def assert_same_batches(one, two):
    assert len(one) == len(two) > 0
    for (images, labels), (others, other_labels) in zip(one, two, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hflip": 0.5, "hold_out": 5},
        {"crop_pct": 0.8},
        {"image_size": 8},
        {"in_memory": "never"},
        {"crop": "resized", "auto_augment": "rand-m9-mstd0.5"},
    ],
    ids=str,
)
def test_a_packed_file_gives_the_batches_of_its_folder(settings, tmp_path):
    root = draw_folder(tmp_path / "pictures")
    info = pack(DataConfig(path=str(root)), tmp_path / "one.safetensors")
    source, train, expected = batches_of(DataConfig(path=str(root), **settings))
    other, other_train, found = batches_of(DataConfig(path=str(tmp_path / "one.safetensors"), **settings))
    assert_same_batches(found, expected)
    assert type(train) is type(other_train)
    assert other.describe() == source.describe()
    assert (other.name, other.class_names, info.image_size) == ("pictures", CLASSES, 16)


def test_grey_images_with_statistics_of_their_own_are_packed_too(tmp_path):
    pack(DataConfig(), tmp_path / "digits.safetensors")
    source, _, expected = batches_of(DataConfig())
    other, _, found = batches_of(DataConfig(path=str(tmp_path / "digits.safetensors")))
    assert_same_batches(found, expected)
    for name in ("name", "class_names", "in_chans", "image_size", "mean", "std", "crop_pct"):
        assert getattr(other, name) == getattr(source, name)


def test_images_that_are_not_square_are_cropped_at_their_centre(tmp_path):
    root = draw_folder(tmp_path / "pictures", size=16)
    pixels = np.random.default_rng(1).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train/blue/7.png")
    target = tmp_path / "one.safetensors"
    with pytest.raises(UsageError, match=r"not square or not of one size \(16 x 16 and 48 x 32 .*data.image_size"):
        pack(DataConfig(path=str(root)), target)
    assert list(tmp_path.iterdir()) == [root]
    info = pack(DataConfig(path=str(root), image_size=12), target)
    assert info.resize == "shorter side resized to 12 px, then centre crop"
    resized = transforms.Resize(12)(Image.fromarray(pixels))
    assert resized.size == (18, 12)
    expected = np.asarray(resized)[:, 3:15].transpose(2, 0, 1)
    source = open_source(DataConfig(path=str(target)))
    assert np.array_equal(source.train.images[7].numpy(), expected)
    config = DataConfig(path=str(target), crop="padded")
    assert isinstance(batches_of(config)[1], InMemoryLoader)


def test_the_key_tells_data_apart_and_the_place_does_not(tmp_path):
    keys = set()
    for place in ("here", "there"):
        root = draw_folder(tmp_path / place / "pictures")
        keys.add(pack(DataConfig(path=str(root)), tmp_path / "one.safetensors").key)
    assert len(keys) == 1
    Image.new("RGB", (16, 16)).save(root / "val/red/0.png")
    assert pack(DataConfig(path=str(root)), tmp_path / "one.safetensors").key not in keys


def test_the_command_says_what_it_made(tmp_path):
    root = draw_folder(tmp_path / "pictures", splits=("train", "test"))
    target = tmp_path / "new/one.safetensors"
    result = invoke(pack_command, f"data.path={root}", "data.val_split=test", "data.image_size=8", "--output", target)
    assert result.output == f"{target}: 24 training and 24 validation images, 3 x 8 x 8, 3 classes, 0 MiB\n"
    for split in ("val", "test"):  # the default and the name that the folder had
        assert open_source(DataConfig(path=str(target), val_split=split)).num_val == 24
    with pytest.raises(UsageError, match=r"data.val_split=dev: .* holds the splits train and test"):
        open_source(DataConfig(path=str(target), val_split="dev"))


def missing(file):
    file.unlink()


def text(file):
    file.write_text("no tensors")


def truncated(file):
    file.write_bytes(file.read_bytes()[:-100])


def foreign(file):
    save_file({"weight": torch.zeros(3)}, file)


def rewritten(file, change):
    tensors = load_file(file)
    with packed.safe_open(file, framework="pt") as opened:
        facts = json.loads(opened.metadata()["affnorm_zoo.packed"])
    change(tensors, facts)
    save_file(tensors, file, {"affnorm_zoo.packed": json.dumps(facts)})


def newer(file):
    rewritten(file, lambda tensors, facts: facts.update(version=2, news=True))


def label_outside(file):
    rewritten(file, lambda tensors, facts: tensors["val.labels"].fill_(3))


def image_lost(file):
    rewritten(file, lambda tensors, facts: facts["num_images"].update(train=25))


def tensor_lost(file):
    rewritten(file, lambda tensors, facts: tensors.pop("val.images"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "data.path: .* is not a file; affnorm-zoo pack makes one"),
        (text, "is not a safetensors file, or is damaged .*; pack it again"),
        (truncated, "is not a safetensors file, or is damaged .*; pack it again"),
        (foreign, "is not a packed dataset: data.path takes what affnorm-zoo pack has written"),
        (newer, "has format version 2, and this version of affnorm_zoo reads 1"),
        (label_outside, r"is damaged: val.labels must be 24 numbers of classes"),
        (image_lost, r"is damaged: train.images must be uint8 and \(25, 3, 16, 16\)"),
        (tensor_lost, r"is damaged: val.images must be uint8"),
    ],
)
def test_a_file_that_does_not_fit_is_explained_in_a_line(damage, message, tmp_path):
    file = tmp_path / "one.safetensors"
    pack(DataConfig(path=str(draw_folder(tmp_path / "pictures"))), file)
    damage(file)
    with pytest.raises(UsageError, match=message) as caught:
        open_source(DataConfig(path=str(file)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    config, file = DataConfig(path=str(draw_folder(tmp_path / "pictures"))), tmp_path / "one.safetensors"
    pack(config, file)
    before = file.read_bytes()
    monkeypatch.setattr(packed, "save_file", fail)
    with pytest.raises(UsageError, match=r"cannot be written: .*No space left"):
        pack(config, file)
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.safetensors", "pictures"]
    with pytest.raises(UsageError, match=r"--output must end in .safetensors"):
        pack(config, tmp_path / "one.pt")


def test_a_bad_image_is_never_packed(tmp_path):
    root = draw_folder(tmp_path / "pictures")
    (root / "train/red/0.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"red/0.png cannot be decoded"):
        pack(DataConfig(path=str(root), max_bad_images=9), tmp_path / "one.safetensors")


def test_evaluation_of_a_packed_file_visits_every_image_once(tmp_path):
    file = tmp_path / "one.safetensors"
    pack(DataConfig(path=str(draw_folder(tmp_path / "pictures"))), file)
    source = open_source(DataConfig(path=str(file)))
    preprocessing = resolve_preprocessing(DataConfig(), source, CFG)
    for world in (1, 5):
        loaders = [eval_loader(source.val, preprocessing, batch_size=2, rank=r, world_size=world) for r in range(world)]
        labels = [label for loader in loaders for _, batch in loader for label in batch.tolist()]
        assert sorted(labels) == sorted(source.val.labels.tolist())
