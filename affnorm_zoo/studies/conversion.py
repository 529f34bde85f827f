"""What conversion keeps of a trained network: one shot, by scale and fit, and after some images of fine-tuning."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from affnorm_zoo.config import DataConfig, load_config
from affnorm_zoo.conversion import convert
from affnorm_zoo.data import Normalize, eval_loader, open_source, resolve_preprocessing
from affnorm_zoo.evaluation import load_model
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.hub import export_conversion
from affnorm_zoo.runs.files import read_json, write_json
from affnorm_zoo.runs.layout import WEIGHTS_FILE
from affnorm_zoo.runs.model import build_model
from affnorm_zoo.training import train

SOURCE = "resnet20_cifar_batchnorm.c10_e15"
NORMALIZER = "patchnorm"
NUM_IMAGES = 512  # of the training set, per conversion
ONE_SHOT = (("rms", "lstsq"), ("rms4", "channel"), ("rms10", "channel"), ("rms", "channel"), ("rms", "layer"))
FINE_TUNED = ("distilled", "labels")
FINE_TUNED_IMAGES = 20_000


@dataclass
class Study:
    """The measurements of one data set; results are kept in ``output``, so that a study can be resumed.

    Args:
        data: the data.
        config: of the fine-tuning runs, a YAML file.
        output: JSON file of results.
        work: folder for converted networks and runs.
    """

    data: DataConfig
    config: Path
    output: Path
    work: Path

    def __post_init__(self) -> None:
        self.source = open_source(self.data)
        self.network = load_model(SOURCE)
        self.preprocessing = resolve_preprocessing(self.data, self.source, self.network.pretrained_cfg, trained=True)
        self.results = read_json(self.output) or {
            "source": SOURCE, "normalizer": NORMALIZER, "data": self.source.name, "num_images": NUM_IMAGES,
            "num_test": self.source.num_val, "environment": describe_environment(torch.device("cpu")), "rows": [],
        }  # fmt: skip

    def run(self, seeds: int, fine_tuned_seeds: int = 1) -> None:
        """Measure what is missing; every seed from 0 on chooses other images, and another order of training.

        Args:
            seeds: conversions per scale and fit.
            fine_tuned_seeds: fine-tuning runs with labels, and as many that distil.
        """
        self._once({"kind": "source"}, lambda: {"top1": self._top1(self.network)})
        for (scale, fit), seed in product(ONE_SHOT, range(seeds)):
            row = {"kind": "one shot", "scale": scale, "fit": fit, "seed": seed}
            self._once(row, partial(self._convert, scale, fit, seed))
        for how, seed in product(FINE_TUNED, range(fine_tuned_seeds)):
            row = {"kind": "fine-tuned", "scale": "rms", "how": how, "seed": seed}
            self._once(row, partial(self._fine_tune, how, seed))

    def _once(self, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        if not any(row.items() <= other.items() for other in self.results["rows"]):
            self.results["rows"].append({**row, **measure()})
            write_json(self.output, self.results)

    def _images(self, seed: int) -> Iterator[Tensor]:
        order = torch.randperm(self.source.num_train, generator=torch.Generator().manual_seed(seed))
        normalize = Normalize(self.preprocessing, torch.device("cpu"))
        chosen = order[:NUM_IMAGES].tolist()
        for images, _ in eval_loader(self.source.train, self.preprocessing, batch_size=128, indices=chosen):
            yield normalize(images)

    def _convert(self, scale: str, fit: str, seed: int) -> dict[str, Any]:
        conversion = convert(self.network, NORMALIZER, images=self._images(seed), scale=scale, fit=fit)
        shares = [row.share for row in conversion.layers]
        return {
            "top1": self._top1(conversion.model),
            "logit_error": conversion.logit_error,
            "mean_share": sum(shares) / len(shares),
        }

    def _fine_tune(self, how: str, seed: int) -> dict[str, Any]:
        folder = self.work / f"rms_seed{seed}"
        if not folder.exists():
            conversion = convert(self.network, NORMALIZER, images=self._images(seed), scale="rms")
            facts = {"scale": "rms", "data": self.source.name, "seed": seed}
            facts["environment"] = describe_environment(torch.device("cpu"))
            self.work.mkdir(parents=True, exist_ok=True)
            export_conversion(conversion, folder, SOURCE, facts, self.source.class_names)
        config = load_config(
            [self.config],
            [
                f"model.weights={folder}", "model.kwargs.norm_scale=rms", f"train.seed={seed}",
                f"data.path={self.data.path}", f"data.train_split={self.data.train_split}",
                f"data.val_split={self.data.val_split}",
                # the engine's epoch then has FINE_TUNED_IMAGES images
                f"data.hold_out={self.source.num_train - FINE_TUNED_IMAGES}",
                *([f"train.distill_from={SOURCE}"] if how == "distilled" else []),
            ],
        )  # fmt: skip
        run = self.work / f"rms_{how}_seed{seed}"
        report = train(config, run, resume="auto")
        model = build_model(config.model, len(self.source.class_names), self.source.in_chans)
        model.load_state_dict(load_file(run / WEIGHTS_FILE))
        digest = hashlib.sha256(self.config.read_bytes()).hexdigest()
        return {"top1": self._top1(model), "updates": report["updates"], "config_sha256": digest}

    @torch.no_grad()
    def _top1(self, model: nn.Module) -> float:
        model.eval()
        normalize = Normalize(self.preprocessing, torch.device("cpu"))
        correct = total = 0
        for images, labels in eval_loader(self.source.val, self.preprocessing, batch_size=250):
            correct += int((model(normalize(images)).argmax(1) == labels).sum())
            total += len(labels)
        return correct / total
