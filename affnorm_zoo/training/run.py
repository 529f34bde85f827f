import dataclasses
import logging
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from safetensors.torch import save_file

from affnorm_zoo.config import RunConfig, flatten
from affnorm_zoo.diagnostics.figures import plot_training
from affnorm_zoo.evaluation import evaluate
from affnorm_zoo.training import run_folder, watch
from affnorm_zoo.training.assemble import Parts, assemble
from affnorm_zoo.training.deepspeed import is_deepspeed
from affnorm_zoo.training.interrupt import Interrupt
from affnorm_zoo.training.keeper import Keeper
from affnorm_zoo.training.opening import RunFolder
from affnorm_zoo.training.plan import peak_flops
from affnorm_zoo.training.plots import plot_curves
from affnorm_zoo.training.probe import DivergenceProbe
from affnorm_zoo.training.processes import build_accelerator, on_main

_logger = logging.getLogger(__name__)


class PreemptedError(RuntimeError):
    """The run was told to stop, has saved its state, and can be resumed. ``signum`` is the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def train(
    config: RunConfig, output: Path, *, resume: str = "none", overwrite: bool = False, allow_changes: bool = False
) -> dict[str, Any]:
    """Train a model and leave its weights, config, metrics, checkpoints and report in ``output``.

    Everything that can be wrong with the config, the data or the folder is said before the first step, and before
    the folder is made. ``run_state.json`` says at any time how the run stands.

    Args:
        config: what to train.
        output: the run folder; on several machines, one that all of them see.
        resume: ``"none"``, ``"auto"`` (from the newest sound checkpoint in ``output``, if there is one) or the path of
            a checkpoint.
        overwrite: whether a folder in use is emptied; otherwise it is an error.
        allow_changes: whether a resumed run may differ from the saved one in what decides the result.

    Returns:
        The report, on every process; that of the finished run, if ``resume="auto"`` finds one.

    Raises:
        UsageError: something that the caller can put right.
        NonFiniteError: the training diverged.
        PreemptedError: a signal asked for a stop; the state is saved.
    """
    watch.check_trackers(config.runtime.trackers)
    accelerator = build_accelerator(
        config.runtime, log_with=list(config.runtime.trackers) or None, project_dir=str(output)
    )
    folder = RunFolder(output)
    finished = on_main(accelerator, lambda: folder.finished_report(config, resume))
    if finished:
        return finished
    with Interrupt() as interrupt:
        parts = assemble(config, accelerator, resume)
        probe = DivergenceProbe(config, parts)
        checkpoint = on_main(accelerator, lambda: folder.open(config, parts, resume, overwrite, allow_changes))
        try:
            return _train(config, output, parts, probe, interrupt, checkpoint)
        except PreemptedError as error:
            _write_state(parts, output, "preempted", message=str(error))
            raise
        except BaseException as error:
            with suppress(OSError):  # a full disk is told by the error itself
                _write_state(parts, output, "failed", message=f"{type(error).__name__}: {error}")
            raise
        finally:
            folder.release()


def _train(
    config: RunConfig,
    output: Path,
    parts: Parts,
    probe: DivergenceProbe,
    interrupt: Interrupt,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Go through the epochs, from the checkpoint on if there is one, and write the report."""
    trainer, accelerator = parts.trainer, parts.trainer.accelerator
    progress = trainer.state.progress
    if checkpoint is not None:
        trainer.state.load(checkpoint)
        if trainer.schedule is not None:
            trainer.schedule.step_update(progress.updates)
    metrics = output / run_folder.METRICS_FILE
    if accelerator.is_main_process:
        watch.trim_metrics(metrics, progress.windows, progress.epoch)
        metrics.touch()
        if config.runtime.trackers:
            accelerator.init_trackers("affnorm_zoo", flatten(config))
    _write_state(parts, output, "running")
    updates_per_epoch = trainer.batches.num_updates
    log = watch.RunLog(
        metrics,
        accelerator,
        config.train.epochs * updates_per_epoch,
        3 * parts.forward_flops,
        peak_flops(accelerator.device, accelerator.mixed_precision),
    )
    keeper = Keeper(output / run_folder.CHECKPOINTS, config.checkpoint, updates_per_epoch)
    begin = time.perf_counter()
    log.start(progress.windows)
    if progress.windows == 0 and probe.is_due():
        log.record_divergence(probe.measure())
    try:
        while progress.epoch < config.train.epochs and not _is_done_early(config, parts):
            _run_epoch(config, parts, probe, interrupt, log, keeper)
    finally:
        log.close()
    seconds = time.perf_counter() - begin
    shares = {} if probe.every is None else {"divergence_seconds": round(probe.seconds, 3)}
    return _finish(config, output, parts, {"seconds": seconds, **shares})


def _run_epoch(
    config: RunConfig,
    parts: Parts,
    probe: DivergenceProbe,
    interrupt: Interrupt,
    log: watch.RunLog,
    keeper: Keeper,
) -> None:
    """Train to the end of the epoch, evaluate, save; or save and stop where a signal says so."""
    trainer, progress = parts.trainer, parts.trainer.state.progress
    for _ in () if _is_capped(config, parts) else trainer.windows():
        log.advance()
        if probe.is_due():
            log.record_divergence(probe.measure())
        is_main = trainer.accelerator.is_main_process
        wants_save = is_main and _can_save(parts) and keeper.is_due_within_epoch(progress)
        stop, save = interrupt.agree(wants_save)
        if stop or save or progress.windows % config.runtime.log_updates == 0:
            log.record_windows(trainer.drain(), progress.epoch)
        if stop:
            _preempt(parts, keeper, interrupt)
        if save:
            keeper.save(trainer.state)
        if _is_capped(config, parts):
            break
    windows = trainer.drain()
    log.record_windows(windows, progress.epoch)
    record = _evaluate(parts, interrupt)
    if interrupt.agree()[0] or record is None:
        _preempt(parts, keeper, interrupt)
    if progress.window == trainer.batches.num_updates:  # a run that max_updates cuts off can go on from here
        progress.epoch, progress.window = progress.epoch + 1, 0
        progress.loss_sum, progress.num_losses = 0.0, 0
    keeper.note_result(progress, record)
    progress.evaluated = record
    log.record_epoch(record, _epoch_line(record, config.train.epochs))
    if _can_save(parts) and keeper.is_due_after_epoch(
        progress, is_last=progress.epoch == config.train.epochs or _is_capped(config, parts)
    ):
        keeper.save(trainer.state)


def _evaluate(parts: Parts, interrupt: Interrupt) -> dict[str, Any] | None:
    """Measure the weights, and their average if there is one."""
    trainer = parts.trainer
    state, progress = trainer.state, trainer.state.progress
    record: dict[str, Any] = {"epoch": progress.epoch + 1, "update": progress.windows, "updates": progress.updates}
    arguments = (parts.val_loader, trainer.normalize, trainer.accelerator, lambda: interrupt.signum != 0)
    record["train"] = {"loss": progress.loss_sum / max(progress.num_losses, 1)}
    record["val"] = evaluate(state.model, *arguments)
    if state.ema is not None and record["val"] is not None:
        with state.ema.averaged(state.model) as averaged:
            record["ema"] = evaluate(averaged, *arguments)
    return None if None in record.values() else record


def _preempt(parts: Parts, keeper: Keeper, interrupt: Interrupt) -> NoReturn:
    progress = parts.trainer.state.progress
    if _can_save(parts):
        keeper.save(parts.trainer.state)
    lost = is_deepspeed(parts.trainer.accelerator)
    raise PreemptedError(
        f"stopped by signal {interrupt.signum} after update {progress.windows} of epoch {progress.epoch + 1}; "
        + ("under DeepSpeed nothing is saved" if lost else "go on with --resume auto"),
        interrupt.signum,
    )


def _can_save(parts: Parts) -> bool:
    """Whether a run can go on from here: a stream only from the end of an epoch, under DeepSpeed never."""
    if is_deepspeed(parts.trainer.accelerator):
        return False
    return not parts.source.is_stream or parts.trainer.state.progress.window in (0, parts.trainer.batches.num_updates)


def _is_capped(config: RunConfig, parts: Parts) -> bool:
    return config.train.max_updates is not None and parts.trainer.state.progress.windows >= config.train.max_updates


def _is_done_early(config: RunConfig, parts: Parts) -> bool:
    progress = parts.trainer.state.progress
    return _is_capped(config, parts) and progress.evaluated.get("update") == progress.windows


def _finish(config: RunConfig, output: Path, parts: Parts, times: dict[str, float]) -> dict[str, Any]:
    """Leave weights, curves and the report."""
    state, accelerator, progress = parts.trainer.state, parts.trainer.accelerator, parts.trainer.state.progress
    report = {
        "model": config.model.name,
        "data": parts.source.name,
        "class_names": list(parts.source.class_names),
        "num_train_images": parts.source.num_train,
        "preprocessing": dataclasses.asdict(parts.preprocessing),
        "seed": config.train.seed,
        "epochs": progress.epoch,
        "updates": progress.updates,
        "windows": progress.windows,
        "samples": progress.samples,
        "parameters": parts.parameters,
        "train_loss": progress.evaluated["train"]["loss"],
        **{part: metrics for part, metrics in progress.evaluated.items() if part in ("val", "ema")},
        "best": progress.best,
        **times,
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "environment": run_folder.describe_environment(),
    }
    weights: dict[str, Any] = {run_folder.WEIGHTS_FILE: state.model_weights()}
    if state.ema is not None:
        weights[run_folder.EMA_WEIGHTS_FILE] = state.ema_weights()
    on_main(accelerator, partial(_write_results, output, weights, report))
    return report


def _write_results(output: Path, weights: dict[str, Any], report: dict[str, Any]) -> None:
    for name, tensors in weights.items():
        run_folder.write_atomically(output / name, partial(save_file, tensors))
    if not plot_curves(output / run_folder.METRICS_FILE, output / run_folder.CURVES_FILE):
        _logger.warning("curves.png needs matplotlib: pip install 'affnorm-zoo[plots]'")
    plot_training(output / run_folder.METRICS_FILE, output / run_folder.DIVERGENCE_FILE)
    run_folder.write_json(output / run_folder.REPORT_FILE, report)
    run_folder.write_state(output, "completed", epoch=report["epochs"], updates=report["updates"])


def _write_state(parts: Parts, output: Path, state: str, **details: Any) -> None:
    if parts.trainer.accelerator.is_main_process:
        progress = parts.trainer.state.progress
        run_folder.write_state(output, state, epoch=progress.epoch, update=progress.windows, **details)


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {record['epoch']:>3}/{epochs}  loss {record['train']['loss']:.4f}"]
    for weights in ("val", "ema"):
        if weights in record:
            metrics = record[weights]
            parts.append(f"{weights} loss {metrics['loss']:.4f}  top-1 {100 * metrics['top1']:.2f} %")
    return "  ".join(parts)
