"""What becomes of kernels and of compiled models on a GPU, by the compilers' own account, without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux")


def run(script, tmp_path, *arguments):
    """What a script prints, in a process whose Triton compiles."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", Path(__file__).parent / script, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# 65,536 registers of a multiprocessor over 128 threads: with 168 each, three programs of 4 warps run at once
MOST_REGISTERS = 168


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", [(), ("all",)], ids=["chosen", "all"])
def test_no_kernel_spills_at_the_shapes_of_real_networks(which, tmp_path):
    kernels = run("gpu_resources.py", tmp_path, *which)  # all: about five minutes
    assert len(kernels) == (12 * 2 * 3 * 14 if which else 14 + 5 * 3 + 1)
    assert [k for k in kernels if k["spilled"]] == []
    assert [k for k in kernels if k["divisions"]] == []
    sums = [k for k in kernels if k["case"].startswith(("square_sum", "pointwise"))]
    assert any(k["loops"] for k in sums)
    assert [k for k in sums if k["barriers_in_loops"]] == []
    # grouped images in NCHW, which no training in channels_last has, may take more
    is_held = [k for k in kernels if not re.search(r"in (32|96) groups, NCHW", k["case"])]
    assert [k for k in is_held if k["registers"] > MOST_REGISTERS] == []


# the script reaches into Inductor, which changes from version to version
KNOWN_INDUCTOR = (2, 14)
OTHER_INDUCTOR = tuple(map(int, torch.__version__.split(".")[:2])) != KNOWN_INDUCTOR


@pytest.mark.skipif(OTHER_INDUCTOR, reason="cuda_code.py patches Inductor as it is in torch 2.14")
@pytest.mark.slow
@pytest.mark.parametrize("blocks", [("bottleneck",), ("basic", "downsample", "norm_like", "grouped")], ids=" ".join)
def test_compiled_blocks_write_nothing_against_channels_last(blocks, tmp_path):
    for name, passes in run("cuda_code.py", tmp_path, *blocks).items():
        for direction, count in passes.items():
            assert count["convolutions"] == (4 if name == "basic" else 6 if name != "downsample" else 7), direction
            assert count["nhwc_stores"], "no store was recognised"
            # Inductor writes pooled maps, one number per pixel and group, in NCHW: those of two grouped convolutions
            maps = [["32", "3136"]] * 2 if (name, direction) == ("grouped", "backward") else []
            assert count["nchw_tensors"] == maps, f"{direction} of {name}"
            assert maps or count["nchw_stores"] == [], f"{direction} of {name}"
            assert count["library_bias_sums"] == 0, direction
