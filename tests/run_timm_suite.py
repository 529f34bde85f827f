"""Run timm's own model tests on the zoo: python tests/run_timm_suite.py ['resnet18_patchnorm' 'vit_*' ...] [--OPTIONS].

They come with the source distribution of the installed timm, which pip fetches into a temporary folder. Without names
or wildcards every model of the zoo is tested; what begins with a dash goes to pytest.
"""

import fnmatch
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import timm
import timm.models
from timm.models import _registry

import affnorm_zoo  # noqa: F401


class OnlyTheZoo:
    """pytest plugin: keep the tests of the zoo's models that match, not those that timm runs on models of its own."""

    def __init__(self, patterns):
        names = [*timm.list_models(), *timm.list_models(include_tags=True)]
        self.names = {n for n in names if any(fnmatch.fnmatch(n.partition(".")[0], p) for p in patterns or ["*"])}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if self.model_of(item) in self.names]

    @staticmethod
    def model_of(item):
        return item.callspec.params.get("model_name") if hasattr(item, "callspec") else None


def narrow(list_function):
    """Let a listing function of timm see the zoo's models only."""

    def narrowed(*args, **kwargs):
        names = list_function(*args, **kwargs)
        return [name for name in names if timm.model_entrypoint(name).__module__.startswith("affnorm_zoo.")]

    return narrowed


def fetch_tests(folder: Path) -> Path:
    """Unpack timm's tests and pytest markers beside no timm of their own."""
    command = ["download", "--quiet", "--no-deps", "--no-binary", "timm", f"timm=={timm.__version__}"]
    subprocess.run([sys.executable, "-m", "pip", *command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("timm-*.tar.gz")
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar.getmembers() if m.name.startswith((f"{root}/tests/", f"{root}/pyproject.toml"))]
        tar.extractall(folder / "suite", members=wanted, filter="data")
    return folder / "suite" / root


def main() -> int:
    """Narrow timm's listings, then hand over to pytest."""
    for name in ("list_models", "list_pretrained"):
        narrowed = narrow(getattr(_registry, name))
        setattr(timm, name, narrowed)
        setattr(timm.models, name, narrowed)
    with tempfile.TemporaryDirectory() as folder:
        suite = fetch_tests(Path(folder))
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(suite), "-c", str(suite / "pyproject.toml")]
        patterns = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        options += [argument for argument in sys.argv[1:] if argument.startswith("-")]
        return int(pytest.main([*options, str(suite / "tests/test_models.py")], [OnlyTheZoo(patterns)]))


if __name__ == "__main__":
    sys.exit(main())
