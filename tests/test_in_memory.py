import numpy as np
import pytest
import torch
from pictures import draw_folder
from PIL import Image

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import ShardedBatches, open_source, resolve_preprocessing, train_loader
from affnorm_zoo.data.in_memory import InMemoryLoader, uniforms
from affnorm_zoo.errors import UsageError

CFG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.2,) * 3, "crop_pct": 1.0}


def loader_of(config, batches):
    source = open_source(config)
    return train_loader(source, config, batches, resolve_preprocessing(config, source, CFG))


def test_without_augmentation_it_gives_what_the_workers_give(tmp_path):
    path = str(draw_folder(tmp_path))
    batches = ShardedBatches(24, 12, 6, seed=1)
    kept = loader_of(DataConfig(path=path, crop="none"), batches)
    assert isinstance(kept, InMemoryLoader)
    read = loader_of(DataConfig(path=path, crop="none", in_memory="never"), batches)
    for (images, labels), (others, other_labels) in zip(kept, read, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_shifts_and_flips_are_those_of_their_definition():
    images = torch.randint(0, 255, (140, 3, 8, 8), dtype=torch.uint8)
    batches = ShardedBatches(140, 140, 140, repeats=20)
    batches.set_epoch(4)
    (keys,) = batches
    cpu = torch.device("cpu")
    loader = InMemoryLoader(images, torch.arange(140), batches, padding=2, hflip=0.5, seed=3, device=cpu)
    ((found, labels),) = loader
    assert torch.equal(labels, torch.tensor([index for _, index, _ in keys]))
    draws = uniforms(3, np.array(keys, dtype=np.uint64), 3)
    seen = set()
    for image, (_, index, _), (up, left, mirror) in zip(found, keys, draws, strict=True):
        top, side = int(up * 5), int(left * 5)
        seen.add((top, side, bool(mirror < 0.5)))
        padded = torch.nn.functional.pad(images[index], (2,) * 4)[:, top : top + 8, side : side + 8]
        assert torch.equal(image, padded.flip(-1) if mirror < 0.5 else padded)
    assert len(seen) > 35  # of 50


def test_draws_are_uniform_and_depend_on_every_part_of_the_key():
    keys = np.array([(epoch, index, 0) for epoch in range(10) for index in range(2000)], dtype=np.uint64)
    draws = uniforms(0, keys, 3)
    assert ((draws >= 0) & (draws < 1)).all()
    # twenty thousand draws a column: four standard deviations of a mean, and of a correlation
    assert np.abs(draws.mean(0) - 0.5).max() < 4 * (1 / 12 / 20000) ** 0.5
    assert np.abs(np.corrcoef(draws.T)[np.triu_indices(3, 1)]).max() < 4 / 20000**0.5
    for other in ((1, keys), (0, keys + np.uint64(1)), (0, keys + np.array([0, 0, 1], dtype=np.uint64))):
        assert not np.isclose(uniforms(*other, 3), draws).all(1).any()
    assert np.array_equal(uniforms(0, keys[5:6], 3), draws[5:6])


def test_pictures_that_are_not_square_go_through_the_workers(tmp_path):
    root = draw_folder(tmp_path)
    Image.new("RGB", (20, 16)).save(root / "train/red/0.png")
    batches = ShardedBatches(24, 12, 6)
    assert not isinstance(loader_of(DataConfig(path=str(root)), batches), InMemoryLoader)
    with pytest.raises(UsageError, match=r"data.in_memory=always needs square images: .*20 x 16"):
        loader_of(DataConfig(path=str(root), in_memory="always"), batches)


def test_large_or_otherwise_augmented_data_stay_on_the_disk(tmp_path, monkeypatch):
    from affnorm_zoo.data import in_memory

    root, batches = draw_folder(tmp_path), ShardedBatches(24, 12, 6)
    assert not isinstance(loader_of(DataConfig(path=str(root), crop="resized"), batches), InMemoryLoader)
    monkeypatch.setattr(in_memory, "MAX_BYTES", 24 * 3 * 16 * 16 - 1)
    assert not isinstance(loader_of(DataConfig(path=str(root)), batches), InMemoryLoader)
