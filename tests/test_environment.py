"""Results say what they were made on."""

import builtins
import platform
from pathlib import Path

import pytest
import torch

from affnorm_zoo.evaluation.environment import PACKAGES, describe_environment

CPU_INFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPU_INFO.is_file(), reason="only Linux names its processor there")
def test_the_processor_is_named():
    named = describe_environment(torch.device("cpu"))["device"]
    assert f": {named}\n" in CPU_INFO.read_text()


def test_where_no_processor_is_named_its_architecture_is(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", refuse)
    described = describe_environment(torch.device("cpu"))
    assert described["device"] in (platform.processor(), platform.machine())
    assert described.keys() >= set(PACKAGES)


def test_a_gpu_is_named_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert describe_environment()["device"] == "a GPU"
    assert describe_environment(torch.device("cpu"))["device"] != "a GPU"
