"""How much of a machine's speed the training loop passes on, and how fast batches can be had."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch

from affnorm_zoo.config import RunConfig
from affnorm_zoo.data import train_loader
from affnorm_zoo.evaluation.environment import describe_environment
from affnorm_zoo.training.assemble import Parts, assemble
from affnorm_zoo.training.interrupt import Interrupt
from affnorm_zoo.training.processes import build_accelerator
from affnorm_zoo.training.watch import RunLog


def measure_loop(config: RunConfig, rounds: int, updates: int) -> dict[str, Any]:
    """Time the loop of a run against the bare forward, backward and step of its network, in turns.

    Args:
        config: of the run; one process.
        rounds: turns of each; the first is not counted.
        updates: of each a turn.

    Returns:
        Images a second of loop, bare step, loader in memory and loader with two workers, as mean, deviation and n over
        the rounds; the ratio of loop to bare step, and of the loaders, by medians.
    """
    accelerator = build_accelerator(config.runtime)
    parts = assemble(config, accelerator)
    images = updates * config.train.global_batch_size
    loaders = {name: _loader(parts, config, mode) for name, mode in (("in_memory", "always"), ("workers", "never"))}
    with tempfile.TemporaryDirectory() as folder, Interrupt() as interrupt:
        log = RunLog(Path(folder) / "metrics.jsonl", accelerator, 0, None, None)
        steps = {"loop": _loop_turn(parts, config, log, interrupt, updates), "bare_step": _bare_turn(parts, updates)}
        speeds = _take_turns(steps, rounds, images)
    # apart from the steps, whose cores the workers would take to fetch ahead
    speeds |= _take_turns({name: _loader_turn(loader, updates) for name, loader in loaders.items()}, rounds, images)
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    return {
        "model": config.model.name,
        "batch_size": config.train.global_batch_size,
        "environment": {**describe_environment(accelerator.device), "threads": torch.get_num_threads()},
        "n": rounds,
        "updates_a_turn": updates,
        **{
            name: {"mean": statistics.mean(values[1:]), "stdev": statistics.stdev(values[1:]), "median": medians[name]}
            for name, values in speeds.items()
        },
        "loop_to_bare_step": medians["loop"] / medians["bare_step"],
        "in_memory_to_workers": medians["in_memory"] / medians["workers"],
    }


def _take_turns(turns: dict[str, Callable[[], Any]], rounds: int, images: int) -> dict[str, list[float]]:
    """Images a second of every turn, the first of which only warms up."""
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            speeds[name].append(images / (time.perf_counter() - start))
    return speeds


def _loop_turn(parts: Parts, config: RunConfig, log: RunLog, interrupt: Interrupt, updates: int) -> Callable[[], None]:
    """Updates as a run makes them, with all that it does around them."""
    trainer, progress = parts.trainer, parts.trainer.state.progress

    def epochs() -> Iterable[None]:
        while True:
            yield from trainer.windows()
            progress.epoch, progress.window = progress.epoch + 1, 0

    steps = iter(epochs())

    def turn() -> None:
        for _ in islice(steps, updates):
            log.advance()
            interrupt.agree(False)
            if progress.windows % config.runtime.log_updates == 0:
                log.record_windows(trainer.drain(), progress.epoch)

    return turn


def _bare_turn(parts: Parts, updates: int) -> Callable[[], None]:
    """The least that training can be: one batch, again and again."""
    trainer, state = parts.trainer, parts.trainer.state
    images, labels = next(iter(trainer.loader))
    x = trainer.normalize(images)
    y = labels.to(x.device)

    def turn() -> None:
        for _ in range(updates):
            torch.nn.functional.cross_entropy(state.bare_model(x), y).backward()
            state.optimizer.step()
            state.optimizer.zero_grad()

    return turn


def _loader(parts: Parts, config: RunConfig, mode: str) -> Iterable:
    data = replace(config.data, in_memory=mode, workers=2)
    return train_loader(
        parts.source, data, parts.trainer.batches, parts.preprocessing, parts.trainer.normalize.mean.device
    )


def _loader_turn(loader: Iterable, updates: int) -> Callable[[], None]:
    """Batches that nobody uses, of an endless row of epochs."""
    batches = chain.from_iterable(repeat(loader))

    def turn() -> None:
        for _ in islice(batches, updates):
            pass

    return turn
