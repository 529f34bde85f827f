import os
from pathlib import Path

import pytest
import torch

# deterministic mode refuses cuBLAS's default workspaces, which are chosen when CUDA starts
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark what runs on a GPU where there is one, and elsewhere under Triton's interpreter: all but the compilers."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_compile.py":
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Fresh memory holds NaN, so that an element that is read or left unwritten shows."""

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _no_tf32():
    """What is compared in float32 is computed in it: tensor cores would keep 10 of the operands' 23 bits."""
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    allowed = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = False
    yield
    for library, before in zip(libraries, allowed, strict=True):
        library.allow_tf32 = before
