"""Transfer of a network with trained batch norms to other images, against what people do with the norms today."""

import copy
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.config import DataConfig
from affnorm_zoo.evaluation import load_model
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.studies import lite0
from affnorm_zoo.studies.fine_tuning import fine_tune
from affnorm_zoo.studies.images import Split, load_splits, predict, score
from affnorm_zoo.studies.methods import build_start, set_training_mode
from affnorm_zoo.studies.transfer_grid import RUNS, TransferConfig, Trial, read_runs, trials


class TransferStudy:
    """Runs the missing trials.

    Args:
        config: the grid.
        data: folder of each task's images.
        weights: folder for the package with the weights of EfficientNet-Lite0.
    """

    def __init__(self, config: TransferConfig, data: dict[str, Path], weights: Path) -> None:
        self.config, self.data, self.weights = config, data, weights
        self._sources: dict[str, nn.Module] = {}
        self._splits: dict[str, dict[str, Split]] = {}
        self._starts: dict[tuple[str, str], tuple[nn.Module, Tensor]] = {}
        self._classifiers: dict[tuple[str, str, int], dict[str, Tensor]] = {}

    def splits(self, name: str) -> dict[str, Split]:
        """The images of a task."""
        if name not in self._splits:
            task = self.config.tasks[name]
            data = DataConfig(path=str(self.data[name]), val_split=task.val_split, image_size=task.image_size)
            counts = {"held_out": task.num_held_out, "pool": task.num_pool, "test": task.num_test}
            self._splits[name] = load_splits(data, self.source(task.source).pretrained_cfg, counts, task.num_classes)
        return self._splits[name]

    def source(self, name: str) -> nn.Module:
        """The network to transfer from."""
        if name not in self._sources:
            is_lite0 = name == lite0.ARCHITECTURE
            self._sources[name] = lite0.load_lite0(self.weights) if is_lite0 else load_model(name)
        return self._sources[name]

    def start(self, task: str, method: str) -> tuple[nn.Module, Tensor]:
        """A method's network before fine-tuning, with a classifier of any values, and its features of the pool."""
        if (task, method) not in self._starts:
            pool = self.splits(task)["pool"]
            source = self.source(self.config.tasks[task].source)
            start = build_start(method, source, pool.batches(self.config.num_fit)).to(memory_format=torch.channels_last)
            start.reset_classifier(0)
            features = predict(start, pool)
            start.reset_classifier(self.config.tasks[task].num_classes)
            self._starts[task, method] = start, features
        start, features = self._starts[task, method]
        return copy.deepcopy(start), features

    def classifier(self, trial: Trial, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The logistic regression that a run starts from, as linear probing before fine-tuning does.

        Source:
            Kumar et al. 2022, https://arxiv.org/abs/2202.10054: a random classifier would distort trained features.
        """
        key = trial.task, trial.method, trial.seed
        if key not in self._classifiers:
            penalty = self.config.tasks[trial.task].head_c
            fit = LogisticRegression(C=penalty, max_iter=1000).fit(features.numpy(), labels.numpy())
            self._classifiers[key] = {"weight": torch.from_numpy(fit.coef_), "bias": torch.from_numpy(fit.intercept_)}
        return self._classifiers[key]

    def run(self, trial: Trial) -> dict[str, Any]:
        """Fine-tune and score; a run that meets a non-finite loss scores 0."""
        begin = time.perf_counter()
        splits = self.splits(trial.task)
        task, pool = self.config.tasks[trial.task], splits["pool"]
        seen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(trial.seed))[: task.num_seen]
        model, features = self.start(trial.task, trial.method)
        model.get_classifier().load_state_dict(self.classifier(trial, features[seen], pool.labels[seen]))
        set_training_mode(model, trial.method)
        loss = self.fine_tune(model, trial, pool, seen)
        result = {**asdict(trial), "train_loss": loss, "held_out": 0.0}
        if loss is not None:
            result["held_out"], _ = score(model, splits["held_out"])
        if trial.is_final:
            result["test"], result["test_loss"] = (0.0, None) if loss is None else score(model, splits["test"])
        return result | {"seconds": round(time.perf_counter() - begin, 1)}

    def fine_tune(self, model: nn.Module, trial: Trial, pool: Split, seen: Tensor) -> float | None:
        """Train on each image of ``seen`` once, mirrored at random; see :func:`fine_tune`."""
        mirrored = torch.zeros(len(pool), dtype=torch.bool)
        mirrored[seen] = torch.rand(len(seen), generator=torch.Generator().manual_seed(trial.seed)) < 0.5

        def loss_of(index: Tensor) -> Tensor:
            images = pool.batch(index)
            images = torch.where(mirrored[index, None, None, None], images.flip(3), images)
            return F.cross_entropy(model(images), pool.labels[index])

        batches = list(seen.split(trial.batch_size))
        return fine_tune(model, batches, loss_of, rate=trial.rate, weight_decay=self.config.weight_decay)


def run_transfer(config: TransferConfig, folder: Path, data: dict[str, Path], weights: Path) -> None:
    """Make the missing runs of the tasks whose data are given, on one thread, into ``folder/runs.jsonl``."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    study = TransferStudy(config, data, weights)
    environment = {"environment": describe_environment(), "threads": 1}
    with FileLock(folder / "runs.lock", timeout=0):
        while trial := _next_trial(config, folder, data):
            line = json.dumps(study.run(trial) | environment)
            with (folder / RUNS).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _next_trial(config: TransferConfig, folder: Path, data: dict[str, Path]) -> Trial | None:
    runs = read_runs(folder)
    return next((trial for trial in trials(config, runs) if trial not in runs and trial.task in data), None)
