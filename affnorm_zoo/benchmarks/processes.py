"""Measurements that are split over several processes, so that what is peculiar to one process does not decide."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from affnorm_zoo.benchmarks.networks import Bench
from affnorm_zoo.benchmarks.turns import pool


def measure_table(
    bench: dict[str, Any], mode: str, normalizers: list[str], compiled: bool, processes: int
) -> list[dict[str, Any]]:
    """Time the contenders of one table, in this process or in several new ones, one after the other.

    Args:
        bench: arguments of :class:`affnorm_zoo.benchmarks.networks.Bench`. ``rounds`` are those of all processes
            together.
        mode: ``"train"`` or ``"infer"``.
        normalizers, compiled: as for its methods of these names.
        processes: number of new processes, a divisor of ``rounds``; 1 measures in this one.
    """
    share = {**bench, "rounds": bench["rounds"] // processes}
    if processes == 1:
        return _measure(share, mode, normalizers, compiled)
    tables = []
    for _ in range(processes):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            tables.append(process.submit(_measure, share, mode, normalizers, compiled).result())
    return pool(mode, tables)


def _measure(bench: dict[str, Any], mode: str, normalizers: list[str], compiled: bool) -> list[dict[str, Any]]:
    contest = Bench(**bench)
    return (contest.train if mode == "train" else contest.infer)(normalizers, compiled)
