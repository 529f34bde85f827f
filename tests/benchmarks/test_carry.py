"""What must be carried to a GPU is one folder; what comes back is few files."""

import subprocess
import tarfile

import pytest
from pictures import draw_folder

from affnorm_zoo.benchmarks.gpu_evidence import carry
from affnorm_zoo.benchmarks.gpu_evidence.carry import find_data, join_volumes, pack, write_volumes
from affnorm_zoo.errors import UsageError


def test_what_is_packed_is_found_again_and_only_once_unpacked(tmp_path):
    pictures = draw_folder(tmp_path / "pictures", per_class=2)
    mib = pack(tmp_path / "carried", {"cifar10": pictures}, wheels=())
    archive = tmp_path / "carried/cifar10.tar.xz"
    first = archive.read_bytes()
    assert mib == pytest.approx(sum(f.stat().st_size for f in (tmp_path / "carried").rglob("*.*")) / 2**20)
    for file in pictures.rglob("*.png"):
        file.touch()
    pack(tmp_path / "carried", {"cifar10": pictures}, wheels=())
    assert archive.read_bytes() == first  # the same pictures, the same archive
    unpacked = find_data(tmp_path / "carried", tmp_path / "data", "cifar10")
    for file in pictures.rglob("*.png"):
        assert (unpacked / file.relative_to(pictures)).read_bytes() == file.read_bytes()
    archive.unlink()
    assert find_data(tmp_path / "carried", tmp_path / "data", "cifar10") == unpacked
    with pytest.raises(UsageError, match=r"has no imagenette\.tar\.xz"):
        find_data(tmp_path / "carried", tmp_path / "data", "imagenette")


def test_an_archive_that_holds_a_folder_is_opened_at_its_splits(tmp_path):
    pictures = draw_folder(tmp_path / "deep/cifar10", per_class=1)
    with tarfile.open(tmp_path / "given.tar.xz", "w:xz") as tar:
        tar.add(pictures, "cifar10")
    pack(tmp_path / "carried", {"cifar10": tmp_path / "given.tar.xz"}, wheels=())
    assert find_data(tmp_path / "carried", tmp_path / "data", "cifar10") == tmp_path / "data/cifar10/cifar10"


def test_the_carried_command_installs_the_wheels_and_passes_its_arguments_on(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "_download", lambda names, folder: (folder / f"{names[0]}.whl").write_bytes(b"wheel"))
    pack(tmp_path / "carried", {}, wheels=("timm",))
    assert [f.name.partition("==")[0] for f in (tmp_path / "carried/wheels").iterdir()] == ["timm"]
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3").write_text('#!/bin/sh\necho "$PYTHONPATH | $*" >> "$CALLS"\n')
    (tools / "python3").chmod(0o755)
    variables = {"PATH": f"{tools}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "SITE": "/site"}
    subprocess.run(["bash", tmp_path / "carried/run.sh", "--budget", "9"], env=variables, cwd=tmp_path, check=True)
    install, call = (tmp_path / "calls").read_text().splitlines()
    assert "--no-index" in install
    assert install.endswith(".whl")
    assert call == f"/site:{tmp_path} | scripts/gpu_evidence.py --carried {tmp_path / 'carried'} --budget 9"


def test_what_comes_back_is_in_files_of_limited_size_without_checkpoints_and_data(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "VOLUME_BYTES", 20_000)
    output = tmp_path / "output"
    contents = {
        "one.json": 10, "one.log": 5000, "runs/a/model.safetensors": 30_000, "runs/b/model.safetensors": 130_000,
        "runs/a/checkpoints/update_1/model.safetensors": 10, "data/cifar10/x.json": 10, "runs/a/export/config.json": 9,
    }  # fmt: skip
    for name, size in contents.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(bytes(size))
    write_volumes(output, tmp_path / "volumes")
    sizes = [file.stat().st_size for file in sorted((tmp_path / "volumes").iterdir())]
    assert max(sizes) <= 20_000
    assert 1 < len(sizes) <= carry.MOST_VOLUMES
    join_volumes(tmp_path / "volumes", tmp_path / "back")
    back = {str(file.relative_to(tmp_path / "back")) for file in (tmp_path / "back").rglob("*") if file.is_file()}
    assert back == {"one.json", "one.log", "runs/a/model.safetensors"}  # the larger weights find no room
    with pytest.raises(UsageError, match="has no evidence"):
        join_volumes(tmp_path / "back", tmp_path / "again")
