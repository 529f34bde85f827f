"""Pack the wheels and data that a bare GPU machine lacks into one folder, and results into files of limited size."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.files import write_atomically
from affnorm_zoo.runs.layout import CHECKPOINTS_FOLDER, EXPORT_FOLDER

WARN_MIB = 60  # a machine may accept no more at once, and the repository goes with it
WHEELS = ("timm", "omegaconf")  # missing on machines with torch, or there in another version
VOLUME_BYTES, MOST_VOLUMES = 15 * 2**20, 7  # of result files: machines return only a few files of limited size
_COMMAND = """#!/usr/bin/env bash
# From the root of the repository: bash {folder}/run.sh --output FOLDER [--budget SECONDS] ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
site=${{SITE:-/tmp/affnorm_zoo_site}}
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$here"/wheels/*.whl
PYTHONPATH="$site:$PWD${{PYTHONPATH:+:$PYTHONPATH}}" exec python3 scripts/gpu_evidence.py --carried "$here" "$@"
"""


def pack(output: Path, datasets: dict[str, Path], wheels: Iterable[str] = WHEELS) -> float:
    """Collect wheels of the installed versions, data and the command to run in one folder.

    Args:
        output: the folder; created if missing. Files of an earlier call are replaced.
        datasets: name -> a folder with one folder per split, which is compressed; or a tar of such a folder.
        wheels: names of installed packages.

    Returns:
        Size of the folder in MiB.

    Raises:
        UsageError: a data set is missing, or a wheel cannot be downloaded.
    """
    (output / "wheels").mkdir(parents=True, exist_ok=True)
    for old in (output / "wheels").glob("*.whl"):
        old.unlink()
    names = [f"{name}=={version(name)}" for name in wheels]
    if names:
        _download(names, output / "wheels")
    for name, path in datasets.items():
        _compress(path, output / f"{name}.tar.xz")
    (output / "run.sh").write_text(_COMMAND.format(folder=output.name), encoding="utf-8")
    return sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) / 2**20


def _download(names: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    run = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    if run.returncode:
        raise UsageError(f"pip cannot download {', '.join(names)}: {run.stderr.strip().splitlines()[-1]}")


def _compress(path: Path, target: Path) -> None:
    """Compress a folder into ``target``, in an order independent of the file system; a tar is only recompressed."""
    if path.is_file() and path.suffix == ".xz":
        target.write_bytes(path.read_bytes())
        return
    if not path.is_dir():
        raise UsageError(f"{path} is neither a folder with one folder per split nor a .tar.xz of one")
    with tarfile.open(target, "w:xz") as tar:
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            tar.add(file, file.relative_to(path), filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Keep only a file's name and content, so that the same images give the same archive."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def find_data(carried: Path | None, folder: Path, name: str) -> Path:
    """Unpack a carried data set unless an earlier step has done so. Returns the folder with one folder per split.

    Raises:
        UsageError: nothing is carried, or the folder has no such data set.
    """
    root = folder / name
    if not root.is_dir():
        archive = None if carried is None else carried / f"{name}.tar.xz"
        if archive is None or not archive.is_file():
            raise UsageError(
                f"{carried or '--carried'} has no {name}.tar.xz: make it with `scripts/gpu_evidence.py pack`"
            )
        unpacked = folder / f"{name}.part"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        unpacked.rename(root)
    return next(path.parent for path in sorted(root.rglob("train")) if path.is_dir())


def write_volumes(output: Path, target: Path) -> None:
    """Pack the results of steps and runs in ``output`` into the files ``target/evidence.tar.NN``.

    Checkpoints, data and exports are left out. Weights are added smallest first, up to the limit of the volumes.
    """
    kept = [file for file in output.rglob("*") if file.is_file() and _is_kept(file.relative_to(output))]
    total = 0
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted(kept, key=lambda file: (file.suffix == ".safetensors", file.stat().st_size)):
            total += file.stat().st_size
            if total < MOST_VOLUMES * VOLUME_BYTES:
                tar.add(file, file.relative_to(output))
    data = buffer.getvalue()
    target.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(data), VOLUME_BYTES)):
        part = data[start : start + VOLUME_BYTES]
        write_atomically(target / f"evidence.tar.{number:02d}", partial(_write_bytes, part))


def _write_bytes(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _is_kept(path: Path) -> bool:
    is_part = path.parts[0] != "data" and not {CHECKPOINTS_FOLDER, EXPORT_FOLDER, "carried"} & set(path.parts)
    return is_part and path.suffix in (".json", ".jsonl", ".log", ".yaml", ".safetensors")


def join_volumes(source: Path, output: Path) -> None:
    """Unpack the files of :func:`write_volumes`.

    Raises:
        UsageError: ``source`` has none of its files.
    """
    volumes = sorted(source.glob("evidence.tar.*"))
    if not volumes:
        raise UsageError(f"{source} has no evidence.tar.00")
    with tarfile.open(fileobj=io.BytesIO(b"".join(volume.read_bytes() for volume in volumes))) as tar:
        tar.extractall(output, filter="data")
