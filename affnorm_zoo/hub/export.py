import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.constants import CONFIG_NAME
from safetensors.torch import load_file
from timm.models import save_for_hf

from affnorm_zoo.config import RunConfig, expand_home, flatten, is_folder
from affnorm_zoo.data import Preprocessing
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evaluation import TASKS, task_of_weights
from affnorm_zoo.hub.card import write_card
from affnorm_zoo.hub.results import card_results, write_eval_results
from affnorm_zoo.models import zoo_models
from affnorm_zoo.runs.files import read_json
from affnorm_zoo.runs.layout import (
    BENCHMARK_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    DIVERGENCE_FILE,
    EMA_WEIGHTS_FILE,
    EXPORT_FOLDER,
    REPORT_FILE,
    WEIGHTS_FILE,
)
from affnorm_zoo.runs.model import build_model, describe_preprocessing
from affnorm_zoo.runs.record import read_config
from affnorm_zoo.runs.resume import FREE


def export_run(run: Path, seeds: Sequence[Path] = (), load_as: str | None = None) -> Path:
    """Export a finished run as a folder that ``timm.create_model("local-dir:...", pretrained=True)`` loads.

    It holds ``model.safetensors``, ``config.json`` and the model card ``README.md`` with the run's figures. It is built
    under a temporary name, loaded back, compared with the run's model, logit by logit, and then renamed. The
    weights are the averaged ones if the run kept an average.

    Args:
        run: a finished run folder.
        seeds: further runs of the same config with other seeds; the card then gives mean and standard deviation.
        load_as: timm's name of the weights, for the card, if they have one: in the package, or ``hf-hub:ORG/NAME``.

    Returns:
        The folder, ``run/export``.

    Raises:
        UsageError: a run is not finished, or ``seeds`` differ in more than their seed.
    """
    config, report = _read_run(run)
    weights_file = EMA_WEIGHTS_FILE if "ema" in report else WEIGHTS_FILE
    _check_seeds(config, report, seeds)
    scores = [score_of(path) for path in (run, *seeds)]
    report["val"] = _weights_metrics(report)
    preprocessing = Preprocessing(**report["preprocessing"])
    class_names = tuple(report["class_names"])
    in_chans = preprocessing.input_size[0]
    model = build_model(config.model, len(class_names), in_chans)
    model.load_state_dict(load_file(run / weights_file))
    describe_preprocessing(model, preprocessing, class_names, TASKS[config.data.task].problem_type)

    temporary = run / f".{EXPORT_FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    # a stream does not know the names of its classes
    model_config = {} if is_stream(config) else {"label_names": list(class_names)}
    save_for_hf(model, temporary, model_config=model_config, safe_serialization=True)
    suit_other_readers(temporary / CONFIG_NAME)
    figures = {name for name in (CURVES_FILE, DIVERGENCE_FILE) if (run / name).is_file()}
    for name in figures:
        shutil.copy(run / name, temporary / name)
    benchmark = read_json(run / BENCHMARK_FILE)
    results = card_results(config.data, report)
    write_card(
        temporary / "README.md",
        public_config(config),
        report,
        results=results,
        scores=scores,
        benchmark=benchmark,
        figures=figures,
        load_as=load_as,
    )
    write_eval_results(temporary, config.data, results[0])
    check_reload(model, temporary, preprocessing.input_size)
    target = run / EXPORT_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def is_stream(config: RunConfig) -> bool:
    """Whether the run's data are shards, which do not name their classes."""
    return config.data.kind == "wds"


def suit_other_readers(path: Path) -> None:
    """Extend timm's config.json so that transformers reads it too and it names the import that is needed.

    timm repeats the number of classes among the model's arguments; transformers would pass it twice and fail. By
    ``problem_type`` transformers chooses its loss, and softmax or sigmoid.
    """
    described = json.loads(path.read_text(encoding="utf-8"))
    described.get("model_args", {}).pop("num_classes", None)
    if described["architecture"] in zoo_models():
        described["requires"] = "import affnorm_zoo before timm or transformers build the model"
    problem_type = task_of_weights(described["pretrained_cfg"]).problem_type
    if problem_type is not None:
        described["problem_type"] = problem_type
    path.write_text(json.dumps(described, indent=2), encoding="utf-8")


def _read_run(run: Path) -> tuple[RunConfig, dict[str, Any]]:
    missing = [name for name in (CONFIG_FILE, REPORT_FILE, WEIGHTS_FILE) if not (run / name).is_file()]
    if missing:
        raise UsageError(f"{run} is not a finished run: it has no {' and no '.join(missing)}")
    return read_config(run), json.loads((run / REPORT_FILE).read_text(encoding="utf-8"))


def _weights_metrics(report: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the exported weights: the averaged ones if the run kept an average."""
    return report["ema"] if "ema" in report else report["val"]


def score_of(run: Path) -> float:
    """Top-1, or the mean average precision, of the weights that a finished run exports, in [0, 1]."""
    config, report = _read_run(run)
    return _weights_metrics(report)[TASKS[config.data.task].score.key]


def public_config(config: RunConfig) -> RunConfig:
    """The config without details of the machine: of a path only the folder's own name stays."""
    weights, teacher = config.model.weights, config.train.distill_from
    if weights is not None:
        config = replace(config, model=replace(config.model, weights=Path(weights).name))
    if teacher is not None and is_folder(expand_home(teacher)):
        config = replace(config, train=replace(config.train, distill_from=Path(teacher).name))
    path, labels = config.data.path, config.data.labels
    if labels is not None:
        config = replace(config, data=replace(config.data, labels=Path(labels).name))
    if path is None or (path.startswith("hfds/") and not Path(config.data.local_path).exists()):
        return config
    prefix = next((kind for kind in ("hfds/", "wds/") if path.startswith(kind)), "")
    return replace(config, data=replace(config.data, path=prefix + config.data.name))


def _check_seeds(config: RunConfig, report: dict[str, Any], seeds: Sequence[Path]) -> None:
    used = {config.train.seed}
    for run in seeds:
        other, other_report = _read_run(run)
        ours, theirs = flatten(config), flatten(other)
        differing = [key for key in ours if ours[key] != theirs[key] and key not in {"train.seed", *FREE}]
        differing += [key for key in ("data", "num_train_images") if report[key] != other_report[key]]
        if differing or other.train.seed in used:
            reason = f"differs in {', '.join(differing)}" if differing else f"has the seed {other.train.seed} again"
            raise UsageError(f"{run} cannot be counted with the run that is published: it {reason}")
        used.add(other.train.seed)


@torch.no_grad()
def check_reload(model: Any, folder: Path, input_size: tuple[int, ...]) -> None:
    """Raise RuntimeError unless timm builds the same function from an export folder, to the bit."""
    x = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    reloaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    difference = (model.eval()(x) - reloaded.eval()(x)).abs().max().item()
    if difference != 0.0:
        raise RuntimeError(f"the export does not reproduce the model: logits differ by {difference:.3g}")
