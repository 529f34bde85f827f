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
from affnorm_zoo.studies.paper.runs import Arrays, Run, train_net

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

    def get(self, run: Run) -> dict[str, Any] | None:
        """The result of ``run``, or None if there is none yet."""
        return self._by_name.get(run.name)

    def keep(self, run: Run, result: dict[str, Any]) -> None:
        """Write a result atomically."""
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "runs" / f"{run.name}.json", {"name": run.name, **result})
        self._by_name[run.name] = {"name": run.name, **result}

    def pack(self) -> None:
        """Write all results into one file, one per line, sorted by name."""
        lines = [json.dumps(self._by_name[name]) for name in sorted(self._by_name)]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / PACKED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _add(self, results: list[dict[str, Any]]) -> None:
        self._by_name.update({result["name"]: result for result in results})


def complete(runs: Sequence[Run], arrays: Arrays, results: Results, workers: int, label: str) -> None:
    """Make the runs that have no result yet and write their results; in this process if ``workers`` is 1."""
    missing = [run for run in dict.fromkeys(runs) if results.get(run) is None]
    environment = {"data": arrays.name, "environment": describe_environment(), "threads": 1}
    train = _train_here if workers == 1 else partial(_train_in_processes, workers=workers)
    with tqdm(total=len(missing), desc=label, disable=None) as bar:
        for run, result in train(missing, arrays):
            results.keep(run, {**result, **environment})
            bar.update()


def _train_here(runs: Sequence[Run], arrays: Arrays) -> Iterator[tuple[Run, dict[str, Any]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in runs:
            yield run, train_net(run, arrays)
    finally:
        torch.set_num_threads(threads)


def _train_in_processes(runs: Sequence[Run], arrays: Arrays, workers: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if not runs:
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (arrays.share(),)) as pool:
        futures = {pool.submit(_run_in_worker, run): run for run in runs}
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


def _run_in_worker(run: Run) -> dict[str, Any]:
    assert _arrays is not None
    return train_net(run, _arrays)
