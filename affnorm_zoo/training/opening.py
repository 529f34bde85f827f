"""Opening a run folder: lock it, choose the checkpoint to resume from, write config.yaml and run.json."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from affnorm_zoo.config import RunConfig, config_to_yaml
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evidence.environment import describe_environment, package_version
from affnorm_zoo.training import run_folder
from affnorm_zoo.training.assemble import Parts
from affnorm_zoo.training.resume import check_same_run, choose_checkpoint, describe_facts, fingerprint

_logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of a run, used by its main process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None

    def finished_report(self, config: RunConfig, resume: str) -> dict[str, Any]:
        """The report if ``resume="auto"`` finds a finished run; otherwise empty."""
        state = run_folder.read_json(self.path / run_folder.STATE_FILE).get("state")
        if resume != "auto" or state != "completed":
            return {}
        report, most = run_folder.read_json(self.path / run_folder.REPORT_FILE), config.train.max_updates
        is_done = report["epochs"] >= config.train.epochs or (most is not None and report["windows"] >= most)
        return report if is_done else {}

    def open(self, config: RunConfig, parts: Parts, resume: str, overwrite: bool, allow_changes: bool) -> Path | None:
        """Lock the folder, choose the checkpoint, then record the config and facts. Checks come before any write.

        Returns:
            The checkpoint to resume from, or None.

        Raises:
            UsageError: the folder is in use or cannot be written to, or the checkpoint is damaged or of another run.
        """
        if run_folder.is_used(self.path) and resume == "none" and not overwrite:
            raise UsageError(
                f"the output folder {self.path} is already in use: choose another --output, resume with --resume auto, "
                "or replace it with --overwrite"
            )
        if self.path.is_dir():
            self._lock = run_folder.claim(self.path)
        checkpoint = choose_checkpoint(resume, self.path)
        versions = {name: package_version(name) for name in ("torch", "timm", "affnorm-zoo")}
        num_processes = parts.trainer.accelerator.num_processes
        facts = describe_facts(parts.source.describe(), parts.parameters, num_processes, versions)
        notes = check_same_run(checkpoint, config, facts, allow_changes) if checkpoint else []
        self._lock = self._lock or run_folder.claim(self.path)
        if overwrite and resume == "none":
            self._empty()
        self._write_down(config, parts, facts, checkpoint, notes)
        if parts.source.is_stream:
            _logger.warning("a run on a stream can be resumed only at the end of an epoch, so it is saved only there")
        for note in notes:
            _logger.warning("the rest of the run will not be bit-equal to an uninterrupted one: %s", note)
        return checkpoint

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    def _empty(self) -> None:
        for item in self.path.iterdir():
            if item.name != run_folder.LOCK_FILE:
                shutil.rmtree(item) if item.is_dir() else item.unlink()

    def _write_down(
        self, config: RunConfig, parts: Parts, facts: dict[str, Any], checkpoint: Path | None, notes: list[str]
    ) -> None:
        resumes = run_folder.read_json(self.path / run_folder.RUN_FILE).get("resumes", []) if checkpoint else []
        if checkpoint:
            resumes.append({"checkpoint": str(checkpoint), "notes": notes})
        run_folder.write_text(self.path / run_folder.CONFIG_FILE, config_to_yaml(config))
        run_folder.write_json(
            self.path / run_folder.RUN_FILE,
            {
                "fingerprint": fingerprint(config, facts),
                "facts": facts,
                "learning_rate": config.optim.learning_rate(config.train.global_batch_size),
                "micro_batch_size": parts.micro_batch_size,
                "forward_flops": parts.forward_flops,
                "loading": parts.loading,
                "preprocessing": dataclasses.asdict(parts.preprocessing),
                "distributed_type": parts.trainer.accelerator.distributed_type.value,
                "git_commit": run_folder.git_commit(),
                "environment": describe_environment(),
                "resumes": resumes,
            },
        )
