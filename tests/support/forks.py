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
# the Hub's client reads its settings only once, when imported; the others have imported it
READS_SETTINGS = ("huggingface_hub", "hf_xet", "timm", "accelerate", "affnorm_zoo")


class Forked(FORKS.Process):
    """A forked process that is waited for and signalled as one of ``subprocess`` is."""

    stdout = None  # goes to a file

    def poll(self):
        return self.exitcode

    def wait(self, timeout=None):
        self.join(timeout)
        return self.exitcode

    def send_signal(self, signum):
        os.kill(self.pid, signum)


def start_forked(*command, variables=None, folder=None, cwd=ROOT, fresh=False):
    """Begin ``SCRIPT``, ``-m MODULE`` or ``-c CODE``, with arguments behind it.

    Args:
        variables: the whole environment.
        folder: gets the files ``stdout`` and ``stderr``; without it they are lost.
        cwd: the folder at hand.
        fresh: import timm and the package, and what reads the environment, once more.
    """
    command = [str(argument) for argument in command]
    process = Forked(target=_main, args=(command, variables or environment(), folder, cwd, fresh))
    process.start()
    return process


def run_forked(*command, processes=1, ok=True, variables=None, cwd=ROOT, fresh=False, **extra):
    """Run a script to its end; several processes find each other as those of torchrun do."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory() as folder:
        ranks = [
            start_forked(
                *command, variables=(variables or environment()) | _rendezvous(store, rank, processes) | extra,
                folder=Path(folder), cwd=cwd, fresh=fresh,
            )
            for rank in range(processes)
        ]  # fmt: skip
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


def enter(variables, cwd=ROOT, fresh=False):
    """Take over an environment, a folder at hand and, if ``fresh``, forget what has read the old environment."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    torch.set_num_threads(1)
    if fresh:
        for name in [name for name in sys.modules if name.partition(".")[0] in READS_SETTINGS]:
            del sys.modules[name]


def _main(command, variables, folder, cwd, fresh):
    for stream in (sys.stdout, sys.stderr):
        with (folder / stream.name.strip("<>") if folder else Path(os.devnull)).open("a") as file:
            os.dup2(file.fileno(), stream.fileno())
    enter(variables, cwd, fresh)
    multiprocessing.set_start_method(None, force=True)  # what a script has of itself, for the loader's workers
    if command[0] == "-c":
        sys.argv[:] = ["-c", *command[2:]]
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    elif command[0] == "-m":
        sys.argv[:] = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
