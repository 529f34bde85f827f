"""Overhead of the training loop over a bare step, and loader throughput."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Literal

import torch

from affnorm_zoo.config import RunConfig
from affnorm_zoo.data import train_loader
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs.layout import METRICS_FILE
from affnorm_zoo.training.assemble import Parts, assemble
from affnorm_zoo.training.interrupt import Interrupt
from affnorm_zoo.training.processes import build_accelerator
from affnorm_zoo.training.run_log import RunLog
from affnorm_zoo.training.state import unwrap_optimizer


def measure_loop(config: RunConfig, rounds: int, updates: int) -> dict[str, Any]:
    """Time the loop of a run against the bare forward, backward, clipping and step of its network, in turns.

    Args:
        config: of the run; one process.
        rounds: turns of each; one extra turn is not counted.
        updates: updates per turn.

    Returns:
        Images per second of the loop, the bare step, the loader in memory and the loader with two workers: mean,
        standard deviation and n over the rounds. The ratios of loop to bare step and of the loaders are of medians.

        ``first_update_seconds`` is the time from this call, with everything imported, to the end of the first update:
        opening the data, building the model, filling the loader, one step.

        ``host_ms`` has the median milliseconds that the host is busy with one update, from an idle device to the
        return of the call. Its ``over_bare_step`` is the median difference of neighbouring updates. This is what the
        loop adds: fetching, augmenting and normalising images, seeding, measuring the gradient norm, setting the
        learning rate and logging. On a CPU it includes the time of their arithmetic.
    """
    begin = time.perf_counter()
    accelerator = build_accelerator(config.runtime)
    parts = assemble(config, accelerator)
    images = updates * config.train.global_batch_size
    with tempfile.TemporaryDirectory() as folder, Interrupt() as interrupt:
        log = RunLog(Path(folder) / METRICS_FILE, accelerator, 0, None, None)
        steps = {"loop": _loop_step(parts, config, log, interrupt), "bare_step": _bare_step(parts)}
        steps["loop"]()
        _synchronize(accelerator.device)
        first_update_seconds = time.perf_counter() - begin
        turns = {name: _repeated(step, updates, accelerator.device) for name, step in steps.items()}
        speeds = _take_turns(turns, rounds, images)
        host_ms = _host_ms(steps, rounds * updates, accelerator.device)
    # separate from the steps: the workers would take their cores to prefetch
    loaders = {"in_memory": _loader(parts, config, "always"), "workers": _loader(parts, config, "never")}
    speeds |= _take_turns({name: _loader_turn(loader, updates) for name, loader in loaders.items()}, rounds, images)
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    return {
        "model": config.model.name,
        "batch_size": config.train.global_batch_size,
        "parameter_tensors": len(list(parts.trainer.state.bare_model.parameters())),
        "environment": {**describe_environment(accelerator.device), "threads": torch.get_num_threads()},
        "n": rounds,
        "updates_a_turn": updates,
        **{
            name: {"mean": statistics.mean(values[1:]), "stdev": statistics.stdev(values[1:]), "median": medians[name]}
            for name, values in speeds.items()
        },
        "loop_to_bare_step": medians["loop"] / medians["bare_step"],
        "in_memory_to_workers": medians["in_memory"] / medians["workers"],
        "first_update_seconds": first_update_seconds,
        "host_ms": host_ms,
    }


def _take_turns(turns: dict[str, Callable[[], Any]], rounds: int, images: int) -> dict[str, list[float]]:
    """Images per second of every turn; the first turn is only a warm-up."""
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            speeds[name].append(images / (time.perf_counter() - start))
    return speeds


def _host_ms(steps: dict[str, Callable[[], None]], pairs: int, device: torch.device) -> dict[str, float]:
    """Median host time of the loop's update, of the bare step and of their difference, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(pairs):
        for name, step in steps.items():
            _synchronize(device)  # with a full queue the host would wait for the device
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    over = [loop - bare for loop, bare in zip(times["loop"], times["bare_step"], strict=True)]
    return {name: statistics.median(values) for name, values in {**times, "over_bare_step": over}.items()}


def _loop_step(parts: Parts, config: RunConfig, log: RunLog, interrupt: Interrupt) -> Callable[[], None]:
    """One update as in a run, with everything that the loop does around it."""
    trainer, progress = parts.trainer, parts.trainer.state.progress

    def epochs() -> Iterable[None]:
        while True:
            yield from trainer.windows()
            progress.epoch, progress.window = progress.epoch + 1, 0

    updates = iter(epochs())

    def step() -> None:
        next(updates)
        log.advance()
        interrupt.agree(False)
        if progress.windows % config.runtime.log_updates == 0:
            log.record_windows(trainer.drain(), progress.epoch)

    return step


def _bare_step(parts: Parts) -> Callable[[], None]:
    """The minimum of training: the same batch through network, loss, clipping and optimiser."""
    trainer, state = parts.trainer, parts.trainer.state
    images, labels = next(iter(trainer.loader))
    x = trainer.normalize(images)
    y = labels.to(x.device)
    optimizer, parameters = unwrap_optimizer(state.optimizer), list(state.bare_model.parameters())

    def step() -> None:
        torch.nn.functional.cross_entropy(state.bare_model(x), y).backward()
        if trainer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, trainer.clip_norm)
        if trainer.clip is not None:
            trainer.clip()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _repeated(step: Callable[[], None], times: int, device: torch.device) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(times):
            step()
        _synchronize(device)

    return turn


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _loader(parts: Parts, config: RunConfig, mode: Literal["always", "never"]) -> Iterable:
    data = replace(config.data, in_memory=mode, workers=2)
    return train_loader(
        parts.source, data, parts.trainer.batches, parts.preprocessing, parts.trainer.normalize.mean.device
    )


def _loader_turn(loader: Iterable, updates: int) -> Callable[[], None]:
    """Draw and discard batches."""
    batches = chain.from_iterable(repeat(loader))

    def turn() -> None:
        for _ in islice(batches, updates):
            pass

    return turn
