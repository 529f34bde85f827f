import random
import shutil

import numpy as np
import pytest
import torch
from pictures import CLASSES, draw_folder
from torchvision import transforms

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import Digits, Normalize, ShardedBatches, eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.data import train_loader as make_train_loader
from affnorm_zoo.data.sampler import SeededDataset
from affnorm_zoo.errors import UsageError

CFG = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop_pct": 1.0}


def test_digits_are_split_once_and_for_all():
    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1437, 360)
    assert np.bincount(val.labels).min() >= 34
    seen = {np.asarray(image).tobytes() for image in train.images}
    assert sum(np.asarray(image).tobytes() in seen for image in val.images) == 0


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_global_batch_does_not_depend_on_the_number_of_processes(world_size):
    def global_batches(world, micro):
        shards = [list(ShardedBatches(103, 24, micro, rank, world, seed=3)) for rank in range(world)]
        per_update = 24 // (micro * world)
        return [
            {
                index
                for shard in shards
                for batch in shard[u * per_update : (u + 1) * per_update]
                for _, index, _ in batch
            }
            for u in range(103 // 24)
        ]

    batches = global_batches(world_size, micro=3)
    assert batches == global_batches(1, micro=24)
    assert all(len(batch) == 24 for batch in batches)
    assert len(set().union(*batches)) == 96
    sampler = ShardedBatches(103, 24, 3, 0, world_size, seed=3)
    assert len(list(sampler)) == len(sampler)


def test_epochs_and_seeds_shuffle_differently():
    sampler = ShardedBatches(50, 10, 10, 0, 1, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = [[index for _, index, _ in batch] for batch in sampler]
    assert [[index for _, index, _ in batch] for batch in first] != second
    assert list(ShardedBatches(50, 10, 10, 0, 1, seed=1)) != first


class RandomThings(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return random.random(), np.random.rand(), torch.rand(()).item(), index


def test_augmentation_is_a_function_of_seed_epoch_and_index_and_leaves_the_generators_alone():
    dataset = SeededDataset(RandomThings(), seed=5)
    states = random.getstate(), torch.get_rng_state()
    once = dataset[(2, 7, 0)]
    torch.rand(3)
    assert dataset[(2, 7, 0)] == once
    assert dataset[(3, 7, 0)][:3] != once[:3] != dataset[(2, 8, 0)][:3]
    assert SeededDataset(RandomThings(), seed=6)[(2, 7, 0)][:3] != once[:3]
    random.setstate(states[0])
    torch.set_rng_state(states[1])
    expected = torch.rand(2)
    torch.set_rng_state(states[1])
    dataset[(0, 0, 0)]
    assert torch.equal(torch.rand(2), expected)


def test_batches_are_the_same_with_and_without_workers(tmp_path):
    draw_folder(tmp_path)

    def batches(workers):
        augment = dict(hflip=0.5, crop="resized", auto_augment="rand-m9-mstd0.5")
        config = DataConfig(path=str(tmp_path), workers=workers, **augment)
        source = open_source(config)
        shards = ShardedBatches(24, 12, 6, 0, 1, seed=0)
        loader = make_train_loader(source, config, shards, resolve_preprocessing(config, source, CFG))
        return torch.stack([images for images, _ in loader])

    alone, with_workers = batches(0), batches(2)
    assert alone.dtype == torch.uint8
    assert alone.shape == (4, 6, 3, 16, 16)
    assert torch.equal(alone, with_workers)


def test_folder_classes_sizes_and_values(tmp_path):
    draw_folder(tmp_path)
    config = DataConfig(path=str(tmp_path), crop="none")
    source = open_source(config)
    assert source.class_names == CLASSES
    preprocessing = resolve_preprocessing(config, source, CFG)
    (images, labels), *_ = eval_loader(source.val, preprocessing, batch_size=100)
    assert len(images) == 24
    x = Normalize(preprocessing, torch.device("cpu"))(images)
    expected = transforms.functional.normalize(images / 255.0, CFG["mean"], CFG["std"])
    torch.testing.assert_close(x, expected)
    # draw_folder makes channel k the strongest in class k
    assert torch.equal(images.float().mean((2, 3)).argmax(1), labels)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_visits_every_image_once(world_size, tmp_path):
    draw_folder(tmp_path, per_class=5)
    source = open_source(DataConfig(path=str(tmp_path)))
    preprocessing = resolve_preprocessing(DataConfig(), source, CFG)
    labels = [
        label
        for rank in range(world_size)
        for _, batch in eval_loader(source.val, preprocessing, batch_size=2, rank=rank, world_size=world_size)
        for label in batch.tolist()
    ]
    assert sorted(labels) == [0] * 5 + [1] * 5 + [2] * 5


def break_missing(root):
    shutil.rmtree(root)


def break_no_val(root):
    shutil.rmtree(root / "val")


def break_one_class(root):
    shutil.rmtree(root / "train" / "red")
    shutil.rmtree(root / "train" / "green")


def break_classes_differ(root):
    (root / "val" / "red").rename(root / "val" / "pink")


def break_empty_class(root):
    for file in (root / "val" / "red").iterdir():
        file.unlink()


def break_no_images(root):
    for file in root.rglob("*.png"):
        file.rename(file.with_suffix(".txt"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing, "is not a folder; the nearest one that exists is"),
        (break_no_val, "data.val_split: .* has no folder 'val' and no val.tar; it has train"),
        (break_one_class, r"at least two; it has \['blue'\]"),
        (break_classes_differ, r"differ: only in the first \['red'\], only in the second \['pink'\]"),
        (break_empty_class, "has no images of 1 classes, such as red"),
        (break_no_images, "holds no images"),
    ],
)
def test_a_folder_that_does_not_fit_is_explained(damage, message, tmp_path):
    root = draw_folder(tmp_path / "pictures")
    damage(root)
    with pytest.raises(UsageError, match=message):
        open_source(DataConfig(path=str(root)))
