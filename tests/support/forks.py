"""Scripts in processes forked from one that has imported torch and timm, which would take each of them seconds."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import torch
from runs import ROOT, environment
from torch.distributed import TCPStore

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([
    "affnorm_zoo.cli", "affnorm_zoo.training", "matplotlib.figure", "sklearn.datasets", "torch._dynamo",
    "torch.distributed.fsdp",
])  # fmt: skip


def run_forked(script, *arguments, processes=1, ok=True, **extra):
    """Run a script to its end; several processes find each other as those of torchrun do."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [str(argument) for argument in (script, *arguments)]
    with TemporaryDirectory() as folder:
        ranks = [
            FORKS.Process(
                target=_main, args=(command, environment(**_rendezvous(store, rank, processes), **extra), Path(folder))
            )
            for rank in range(processes)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        printed = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
    assert None not in codes, ("still running", *printed)
    assert all(code == 0 if ok else code > 0 for code in codes), (codes, *printed)
    return CompletedProcess(command, max(codes), *printed)


def _rendezvous(store, rank, processes):
    if processes == 1:
        return {}
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": store.host, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip


def _main(command, variables, folder):
    os.environ.clear()
    os.environ.update(variables)
    for stream in (sys.stdout, sys.stderr):
        with (folder / stream.name.strip("<>")).open("a") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(ROOT)
    torch.set_num_threads(1)
    sys.argv[:] = command
    sys.path.insert(0, str(Path(command[0]).parent))
    multiprocessing.set_start_method(None, force=True)  # what a script has of itself, for the loader's workers
    runpy.run_path(command[0], run_name="__main__")
