import dataclasses
import logging
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from affnorm_zoo.config import RunConfig, flatten
from affnorm_zoo.diagnostics.figures import plot_training
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs import layout
from affnorm_zoo.runs.curves import plot_curves
from affnorm_zoo.runs.files import write_atomically, write_json
from affnorm_zoo.runs.folder import RunFolder
from affnorm_zoo.runs.resume import describe_facts
from affnorm_zoo.training import run_log
from affnorm_zoo.training.assemble import Run, assemble
from affnorm_zoo.training.checkpoint_policy import CheckpointPolicy
from affnorm_zoo.training.cost import peak_flops
from affnorm_zoo.training.divergence_probe import DivergenceProbe
from affnorm_zoo.training.epochs import Epochs, PreemptedError
from affnorm_zoo.training.interrupt import Interrupt
from affnorm_zoo.training.processes import build_accelerator, on_main
from affnorm_zoo.training.shared_errors import shared_errors

_logger = logging.getLogger(__name__)


def train(
    config: RunConfig, output: Path, *, resume: str = "none", overwrite: bool = False, allow_changes: bool = False
) -> dict[str, Any]:
    """Train a model and write its weights, config, metrics, checkpoints and report to ``output``.

    Errors in the config, the data or the folder are raised before the first step and before the folder is made.
    ``run_state.json`` always holds the current state of the run.

    Args:
        config: what to train.
        output: the run folder; for several machines it must be on shared storage.
        resume: ``"none"``, ``"auto"`` (from the newest intact checkpoint in ``output``, if any) or the path of a
            checkpoint.
        overwrite: whether to empty a folder in use; otherwise that is an error.
        allow_changes: whether a resumed run may differ from the saved one in settings that decide the result.

    Returns:
        The report, on every process; that of the finished run, if ``resume="auto"`` finds one.

    Raises:
        UsageError: an error that the caller can fix.
        NonFiniteError: training diverged.
        PreemptedError: a signal asked for a stop; the state is saved.
    """
    run_log.check_trackers(config.runtime.trackers)
    accelerator = build_accelerator(
        config.runtime, log_with=list(config.runtime.trackers) or None, project_dir=str(output)
    )
    folder = RunFolder(output)
    finished = on_main(accelerator, lambda: folder.finished_report(config, resume))
    if finished:
        return finished
    with Interrupt() as interrupt:
        run = Run(config, folder, assemble(config, accelerator, resume))
        probe = DivergenceProbe(run)
        checkpoint = on_main(accelerator, lambda: _open(run, resume, overwrite, allow_changes))
        _keep_bad_images(run, checkpoint)
        try:
            with shared_errors():
                return _train(run, probe, interrupt, checkpoint)
        except PreemptedError as error:
            run.write_state("preempted", message=str(error))
            raise
        except BaseException as error:
            with suppress(OSError):  # if the disk is full, let the original error through
                run.write_state("failed", message=f"{type(error).__name__}: {error}")
            raise
        finally:
            folder.release()


def _open(run: Run, resume: str, overwrite: bool, allow_changes: bool) -> Path | None:
    """Open the run's folder; the checkpoint to resume from, or None."""
    config, parts = run.config, run.parts
    facts = describe_facts(parts.source.describe(), parts.parameters, run.accelerator.num_processes)
    record = {
        "learning_rate": config.optim.learning_rate(config.train.global_batch_size),
        "micro_batch_size": parts.micro_batch_size,
        "forward_flops": parts.forward_flops,
        "loading": parts.loading,
        "preprocessing": dataclasses.asdict(parts.preprocessing),
        "distributed_type": run.accelerator.distributed_type.value,
    }
    checkpoint = run.folder.open(config, facts, record, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
    if parts.source.is_stream:
        _logger.warning("a run on a stream can be resumed only at the end of an epoch, so it is saved only there")
    return checkpoint


def _keep_bad_images(run: Run, checkpoint: Path | None) -> None:
    """Collect the undecodable images of all processes, and add those of the resumed run."""
    bad = run.parts.source.bad
    if bad is not None:
        earlier = checkpoint.resolve().parents[1] / layout.BAD_IMAGES_FILE if checkpoint else None
        bad.keep_in(run.folder.path / layout.BAD_IMAGES_FILE, earlier)


def _train(run: Run, probe: DivergenceProbe, interrupt: Interrupt, checkpoint: Path | None) -> dict[str, Any]:
    """Run the remaining epochs, from the checkpoint if there is one, and write the report."""
    config, trainer, progress = run.config, run.trainer, run.progress
    if checkpoint is not None:
        trainer.state.load(checkpoint)
        trainer.schedule.step_update(progress.updates)
    updates_per_epoch = trainer.batches.num_updates
    root = run.folder.path / layout.CHECKPOINTS_FOLDER
    policy = CheckpointPolicy(root, config.checkpoint, config.best_metric, updates_per_epoch)
    log = _start_log(run, config.train.epochs * updates_per_epoch)
    run.write_state("running")
    begin = time.perf_counter()
    Epochs(run, probe, interrupt, log, policy).train()
    seconds = time.perf_counter() - begin
    shares = {} if probe.every is None else {"divergence_seconds": round(probe.seconds, 3)}
    return _finish(run, {"seconds": seconds, **shares})


def _start_log(run: Run, total: int) -> run_log.RunLog:
    """The log of a run of ``total`` windows; what it holds beyond the run's position is dropped."""
    accelerator, parts = run.accelerator, run.parts
    metrics = run.folder.path / layout.METRICS_FILE
    if accelerator.is_main_process:
        run_log.trim_metrics(metrics, run.progress.windows, run.progress.epoch)
        metrics.touch()
        if run.config.runtime.trackers:
            accelerator.init_trackers("affnorm_zoo", flatten(run.config))
        print(parts.loading, flush=True)  # noqa: T201 the run's own log
    peak = peak_flops(accelerator.device, accelerator.mixed_precision)
    return run_log.RunLog(metrics, accelerator, total, 3 * parts.forward_flops, peak)


def _finish(run: Run, times: dict[str, float]) -> dict[str, Any]:
    """Write weights, curves and the report."""
    config, parts, progress = run.config, run.parts, run.progress
    state, accelerator = run.trainer.state, run.accelerator
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
        **({"num_bad_images": bad} if (bad := len(parts.source.bad or ())) else {}),
        "num_processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "environment": describe_environment(),
    }
    weights: dict[str, Any] = {layout.WEIGHTS_FILE: state.model_weights()}
    if state.ema is not None:
        weights[layout.EMA_WEIGHTS_FILE] = state.ema_weights()
    on_main(accelerator, partial(_write_results, run, weights, report))
    return report


def _write_results(run: Run, weights: dict[str, Any], report: dict[str, Any]) -> None:
    output = run.folder.path
    for name, tensors in weights.items():
        write_atomically(output / name, partial(save_file, tensors))
    if not plot_curves(output / layout.METRICS_FILE, output / layout.CURVES_FILE, run.task.score):
        _logger.warning("%s needs matplotlib: pip install 'affnorm-zoo[plots]'", layout.CURVES_FILE)
    plot_training(output / layout.METRICS_FILE, output / layout.DIVERGENCE_FILE)
    write_json(output / layout.REPORT_FILE, report)
    run.write_state("completed")
