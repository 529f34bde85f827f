import pytest
import torch


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Fresh memory holds NaN, so that an element that is read or left unwritten shows."""

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
