"""The result of a run in the two forms that the Hub reads: metadata of the model card, and a file in .eval_results."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER

from affnorm_zoo.config import DataConfig
from affnorm_zoo.evaluation import TASKS

_DEFAULT_TASK = "default"  # of a data set on the Hub that has one


def card_results(data: DataConfig, report: dict[str, Any]) -> list[EvalResult]:
    """The metrics of the exported weights for the card's metadata, the score first."""
    dataset = report["data"] if data.hub_id is None else data.hub_id.partition(":")[0]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=report["data"],
            dataset_split=data.val_split,
            metric_type=metric.hub_type,
            metric_value=report["val"][metric.key],
            metric_name=metric.hub_name,
        )
        for metric in TASKS[data.task].metrics
        if metric.hub_type is not None
    ]


def is_filed(data: DataConfig) -> bool:
    """Whether a result belongs to a data set on the Hub: its id is stated and no training images were held out."""
    return data.hub_id is not None and not data.hold_out


def write_eval_results(folder: Path, data: DataConfig, result: EvalResult) -> None:
    """Write the score as ``.eval_results/NAME.yaml``, from the card's own; nothing unless :func:`is_filed`."""
    if not is_filed(data):
        return
    hub_id, _, task = str(data.hub_id).partition(":")
    notes = f"{result.metric_name} on the split {result.dataset_split}" + (f"; {data.note}" if data.note else "")
    entry = EvalResultEntry(dataset_id=hub_id, task_id=task or _DEFAULT_TASK, value=result.metric_value, notes=notes)
    path = folder / EVAL_RESULTS_FOLDER / f"{hub_id.partition('/')[2]}.yaml"
    path.parent.mkdir()
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), allow_unicode=True, sort_keys=False)
    path.write_text(text, encoding="utf-8")
