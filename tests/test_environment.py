"""Results say what they were made on."""

import builtins
import platform
from importlib import metadata
from pathlib import Path

import pytest
import torch

from affnorm_zoo import __version__, _requirements
from affnorm_zoo.evidence import environment
from affnorm_zoo.evidence.environment import PACKAGES, describe_environment

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


def not_installed(name):
    raise metadata.PackageNotFoundError(name)


def without_this_package(name):
    return not_installed(name) if name == "affnorm-zoo" else metadata.version(name)


def test_a_checkout_that_is_not_installed_knows_its_version(monkeypatch):
    monkeypatch.setattr(environment, "version", without_this_package)
    assert environment.describe_environment()["affnorm-zoo"] == __version__


PYPROJECT = (
    '[project]\ndependencies = [\n    "torch>=2.9", # a remark\n    "timm>=9999",\n    "no-such-package>=1,<2",\n]\n'
)


def test_a_checkout_names_what_it_lacks_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    _requirements.check_checkout(tmp_path / "pyproject.toml")  # installed: pip has checked
    monkeypatch.setattr(_requirements, "version", without_this_package)
    with pytest.raises(ImportError) as error:
        _requirements.check_checkout(tmp_path / "pyproject.toml")
    timm = metadata.version("timm")
    assert f"lacks timm>=9999 ({timm} is installed), no-such-package>=1,<2 (not installed): " in str(error.value)
    assert "torch" not in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_project_declares_is_met_here():
    declared = _requirements.declared_requirements(Path(__file__).parents[1] / "pyproject.toml")
    assert {"timm>=1.0.31,<2", "scipy>=1.11"} <= set(declared)
    assert _requirements.unmet_requirements(declared) == []
