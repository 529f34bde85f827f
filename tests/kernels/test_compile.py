import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")


def test_every_kernel_compiles_to_machine_code_without_a_gpu(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_for_gpu.py"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", script, "90"],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "38 kernels compiled\n", result.stderr
