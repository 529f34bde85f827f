"""Many runs in several processes. Each run writes one JSON file, so a finished run is never repeated."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs.files import write_json
from affnorm_zoo.studies.paper.trial import Arrays, Trial, train_net

PACKED = "runs.jsonl"
_arrays: Arrays | None = None  # of this worker process


class Results:
    """The results of an experiment: a folder of JSON files, and one file with the packed results.

    Args:
        folder: ``runs/NAME.json`` is one run's result; ``runs.jsonl`` has one result per line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, dict[str, Any]] = {}
        packed = folder / PACKED
        if packed.is_file():
            self._add([json.loads(line) for line in packed.read_text(encoding="utf-8").splitlines()])
        self._add([json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("runs/*.json"))])

    def __len__(self) -> int:
        return len(self._by_name)

    def data_names(self) -> set[str]:
        """The names of the results' datasets."""
        return {result["data"] for result in self._by_name.values()}

    def get(self, trial: Trial) -> dict[str, Any] | None:
        """The result of ``trial``, or None if there is none yet."""
        return self._by_name.get(trial.name)

    def keep(self, trial: Trial, result: dict[str, Any]) -> None:
        """Write a result atomically."""
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "runs" / f"{trial.name}.json", {"name": trial.name, **result})
        self._by_name[trial.name] = {"name": trial.name, **result}

    def pack(self) -> None:
        """Write all results into one file, one per line, sorted by name."""
        lines = [json.dumps(self._by_name[name]) for name in sorted(self._by_name)]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / PACKED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _add(self, results: list[dict[str, Any]]) -> None:
        self._by_name.update({result["name"]: result for result in results})


def complete(trials: Sequence[Trial], arrays: Arrays, results: Results, workers: int, label: str) -> None:
    """Make the runs that have no result yet and write their results; in this process if ``workers`` is 1."""
    missing = [trial for trial in dict.fromkeys(trials) if results.get(trial) is None]
    environment = {"data": arrays.name, "environment": describe_environment(), "threads": 1}
    train = _train_here if workers == 1 else partial(_train_in_processes, workers=workers)
    with tqdm(total=len(missing), desc=label, disable=None) as bar:
        for trial, result in train(missing, arrays):
            results.keep(trial, {**result, **environment})
            bar.update()


def _train_here(trials: Sequence[Trial], arrays: Arrays) -> Iterator[tuple[Trial, dict[str, Any]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for trial in trials:
            yield trial, train_net(trial, arrays)
    finally:
        torch.set_num_threads(threads)


def _train_in_processes(
    trials: Sequence[Trial], arrays: Arrays, workers: int
) -> Iterator[tuple[Trial, dict[str, Any]]]:
    if not trials:
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (arrays.share(),)) as pool:
        futures = {pool.submit(_train_in_worker, trial): trial for trial in trials}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(arrays: Arrays) -> None:
    global _arrays
    _arrays = arrays
    torch.set_num_threads(1)  # small networks gain nothing from more threads, and the processes share the cores


def _train_in_worker(trial: Trial) -> dict[str, Any]:
    assert _arrays is not None
    return train_net(trial, _arrays)
