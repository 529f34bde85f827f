"""Run the epochs: train, evaluate, save. On a signal, save and stop."""

from dataclasses import dataclass
from typing import Any, NoReturn

from affnorm_zoo.evaluation import evaluate
from affnorm_zoo.training.assemble import Run
from affnorm_zoo.training.checkpoint_policy import CheckpointPolicy
from affnorm_zoo.training.deepspeed import is_deepspeed
from affnorm_zoo.training.divergence_probe import DivergenceProbe
from affnorm_zoo.training.interrupt import Interrupt
from affnorm_zoo.training.loop import Trainer
from affnorm_zoo.training.run_log import RunLog
from affnorm_zoo.training.state import Progress


class PreemptedError(RuntimeError):
    """A signal, ``signum``, stopped the run. Its state is saved and the run can be resumed."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass(frozen=True)
class Epochs:
    """Runs the remaining epochs."""

    run: Run
    probe: DivergenceProbe
    interrupt: Interrupt
    log: RunLog
    policy: CheckpointPolicy

    def train(self) -> None:
        """Train, evaluate and save until the last epoch.

        Raises:
            NonFiniteError: training diverged.
            PreemptedError: a signal asked for a stop. The state is saved if the run can be resumed from here.
        """
        self.log.start(self._progress.windows)
        if self._progress.windows == 0 and self.probe.is_due():
            self.log.record_divergence(self.probe.measure())
        try:
            while self._progress.epoch < self.run.config.train.epochs and not self._is_done_early():
                self._train_epoch()
                self._close()
        finally:
            self.log.close()

    def _train_epoch(self) -> None:
        """Train to the end of the epoch."""
        for _ in () if self._is_capped() else self._trainer.windows():
            self.log.advance()
            if self.probe.is_due():
                self.log.record_divergence(self.probe.measure())
            is_main = self._trainer.accelerator.is_main_process
            wants_save = is_main and self._can_save() and self.policy.is_due_within_epoch(self._progress)
            stop, save = self.interrupt.agree(wants_save)
            if stop or save or self._progress.windows % self.run.config.runtime.log_updates == 0:
                self.log.record_windows(self._trainer.drain(), self._progress.epoch)
            if stop:
                self._preempt()
            if save:
                self.policy.save(self._trainer.state)
            if self._is_capped():
                break
        self.log.record_windows(self._trainer.drain(), self._progress.epoch)

    def _close(self) -> None:
        """Evaluate if due, and save."""
        progress = self._progress
        record: dict[str, Any] = {"epoch": progress.epoch + 1, "update": progress.updates, "window": progress.windows}
        record["train"] = {"loss": progress.loss_sum / max(progress.num_losses, 1)}
        is_whole = progress.window == self._trainer.batches.num_updates  # max_updates can end a run within an epoch
        is_last = self._is_capped() or (is_whole and record["epoch"] == self.run.config.train.epochs)
        is_measured = is_last or record["epoch"] % self.run.config.train.eval_epochs == 0
        if is_measured:
            record |= self._evaluate()
        if self.interrupt.agree()[0] or None in record.values():
            self._preempt()
        if is_whole:  # a run ended by max_updates can be resumed from here
            progress.epoch, progress.window = progress.epoch + 1, 0
            progress.loss_sum, progress.num_losses = 0.0, 0
        if is_measured:
            self.policy.note_result(progress, record)
            progress.evaluated = record
        self.log.record_epoch(record, _epoch_line(record, self.run))
        if self._can_save() and self.policy.is_due_after_epoch(progress, is_last=is_last):
            self.policy.save(self._trainer.state)

    def _evaluate(self) -> dict[str, dict[str, float] | None]:
        """Evaluate the weights, and their average if there is one; None for an evaluation that a signal interrupted."""
        state = self._trainer.state
        arguments = (
            self.run.parts.val_loader,
            self._trainer.normalize,
            self._trainer.accelerator,
            lambda: self.interrupt.signum != 0,
            self.run.task,
        )
        measured = {"val": evaluate(state.model, *arguments)}
        if state.ema is not None and measured["val"] is not None:
            with state.ema.averaged(state.model) as averaged:
                measured["ema"] = evaluate(averaged, *arguments)
        return measured

    def _preempt(self) -> NoReturn:
        if self._can_save():
            self.policy.save(self._trainer.state)
        lost = is_deepspeed(self._trainer.accelerator)
        raise PreemptedError(
            f"stopped by signal {self.interrupt.signum} after update {self._progress.updates} of epoch "
            f"{self._progress.epoch + 1}; "
            + ("under DeepSpeed nothing is saved" if lost else "resume with --resume auto"),
            self.interrupt.signum,
        )

    def _can_save(self) -> bool:
        """Whether a run can be resumed from here: with a stream only at the end of an epoch, under DeepSpeed never."""
        if is_deepspeed(self._trainer.accelerator):
            return False
        return not self.run.parts.source.is_stream or self._progress.window in (0, self._trainer.batches.num_updates)

    def _is_capped(self) -> bool:
        cap = self.run.config.train.max_updates
        return cap is not None and self._progress.windows >= cap

    def _is_done_early(self) -> bool:
        return self._is_capped() and self._progress.evaluated.get("window") == self._progress.windows

    @property
    def _trainer(self) -> Trainer:
        return self.run.trainer

    @property
    def _progress(self) -> Progress:
        return self.run.progress


def _epoch_line(record: dict[str, Any], run: Run) -> str:
    parts = [f"epoch {record['epoch']:>3}/{run.config.train.epochs}  loss {record['train']['loss']:.4f}"]
    for weights in ("val", "ema"):
        if weights in record:
            metrics = record[weights]
            parts.append(f"{weights} loss {metrics['loss']:.4f}  {run.task.describe_score(metrics)}")
    return "  ".join(parts)
