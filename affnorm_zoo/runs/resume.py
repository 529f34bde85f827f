"""Whether a run may resume from a checkpoint: what must be the same, and what may differ."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from affnorm_zoo.config import RunConfig, expand_home, flatten, is_folder
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evidence.environment import package_version
from affnorm_zoo.runs import checkpoint
from affnorm_zoo.runs.layout import CHECKPOINTS_FOLDER, CONFIG_FILE, RUN_FILE
from affnorm_zoo.runs.record import read_config, read_record

_logger = logging.getLogger(__name__)

# no effect on any number
FREE = {
    "data.path", "data.labels", "data.note", "data.hub_id", "data.workers", "data.timeout_seconds",
    "data.max_bad_images", "data.cache",
    "train.max_updates", "train.eval_epochs",
    "checkpoint.every_epochs", "checkpoint.every_minutes", "checkpoint.every_updates", "checkpoint.keep_last",
    "checkpoint.milestones", "runtime.device", "runtime.log_updates", "runtime.trackers",
    "runtime.divergence_updates", "runtime.divergence_images",
}  # fmt: skip
# the same images in the same order, but different rounding of sums and different random numbers
NOTED = {
    "train.micro_batch_size", "model.grad_checkpointing", "runtime.precision", "runtime.channels_last",
    "runtime.compile", "runtime.compile_mode", "runtime.fused_attn", "runtime.sync_bn", "runtime.deterministic",
}  # fmt: skip


def choose_checkpoint(resume: str, output: Path) -> Path | None:
    """The checkpoint that ``--resume`` selects: none, the run's newest intact one, or one by path.

    Raises:
        FormatError: the run or the checkpoint has another format.
        UsageError: the path is not an intact checkpoint.
    """
    if resume == "none":
        return None
    if resume == "auto":
        if (output / RUN_FILE).is_file():
            read_record(output)
        return checkpoint.find_latest(output / CHECKPOINTS_FOLDER)
    folder = Path(expand_home(resume))
    if not is_folder(folder):
        raise UsageError(f"--resume {resume}: there is no such folder; give auto, none or the path of a checkpoint")
    checkpoint.verify(folder)
    return folder


def check_same_run(folder: Path, config: RunConfig, facts: dict[str, Any], allow_changes: bool) -> list[str]:
    """Compare the run of a checkpoint with the run that resumes from it.

    Args:
        folder: the checkpoint, inside its run's folder.
        config: config of the resumed run.
        facts: facts of the resumed run, from :func:`describe_facts`.
        allow_changes: whether to accept differences that change the result.

    Returns:
        One note per difference after which the run is no longer bit-equal to an uninterrupted one.

    Raises:
        UsageError: a setting or fact that decides the result differs.
    """
    run = folder.resolve().parent.parent
    if not (run / CONFIG_FILE).is_file():
        raise UsageError(f"{folder} is not inside a run folder: {run} has no {CONFIG_FILE}")
    old, new = flatten(read_config(run)), flatten(config)
    changed = {name: (old.get(name), new.get(name)) for name in {*old, *new} if old.get(name) != new.get(name)}
    notes = [f"{name} was {before} and is {now}" for name, (before, now) in changed.items() if name in NOTED]
    refused = [
        f"{name} was {before} and is {now}" for name, (before, now) in changed.items() if name not in NOTED | FREE
    ]
    before = read_record(run)["facts"]
    for name in sorted({*before, *facts}):
        was, value = before.get(name), facts.get(name)
        if was == value:
            continue
        text = f"{name} was {_short(was)} and is {_short(value)}"
        (notes if name.startswith(("num_processes", "version")) else refused).append(text)
    if refused and not allow_changes:
        raise UsageError(
            f"{folder} belongs to another run: {'; '.join(sorted(refused))}. Start a new run, or accept the changes "
            "with --allow-changes"
        )
    return sorted(notes + refused)


def fingerprint(config: RunConfig, facts: dict[str, Any]) -> str:
    """A hash of everything that decides the result: equal for two runs of the same experiment."""
    deciding = {name: value for name, value in flatten(config).items() if name not in FREE | NOTED}
    stable = {name: value for name, value in facts.items() if not name.startswith(("num_processes", "version"))}
    return hashlib.sha256(json.dumps([deciding, stable], sort_keys=True).encode()).hexdigest()


def describe_facts(source_facts: dict[str, Any], parameters: int, num_processes: int) -> dict[str, Any]:
    """Facts of a run that its config does not state and that a resume must compare, with the versions in use."""
    versions = {f"version of {name}": package_version(name) for name in ("torch", "timm", "affnorm-zoo")}
    return {**source_facts, "parameters": parameters, "num_processes": num_processes, **versions}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
