"""The rows of docs/compatibility.md: each is a test, and what the test has found."""

import importlib.metadata

import pytest
import timm


def client(package: str, what: str, outcome: str = "works"):
    """Mark a test as a row of the table; it is skipped where the package is not installed.

    Args:
        package: its name in the registry.
        what: what is done with it.
        outcome: what the table says if the test passes.
    """

    def mark(test):
        test = pytest.mark.clients(package=package, what=what, outcome=outcome)(test)
        missing = version_of(package) is None
        return pytest.mark.skipif(missing, reason=f"{package} is not installed")(test)

    return mark


def version_of(package: str) -> str | None:
    """Of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def trained(name, **options):
    """A packaged model in evaluation mode."""
    return timm.create_model(name, pretrained=True, **options).eval()
