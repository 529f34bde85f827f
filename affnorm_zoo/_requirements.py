"""Name in one line what a checkout lacks, whose requirements no installer has checked."""

import ast
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def unmet_requirements(requirements: list[str]) -> list[str]:
    """The requirements that the installed packages do not meet, each with what was found instead."""
    from packaging.requirements import Requirement  # comes with accelerate; an installed package does not need it

    unmet = []
    for text in requirements:
        requirement = Requirement(text)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            unmet.append(f"{text} (not installed)")
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                unmet.append(f"{text} ({found} is installed)")
    return unmet


def declared_requirements(pyproject: Path) -> list[str]:
    """The ``dependencies`` of a pyproject.toml, which Python 3.10 cannot parse by itself."""
    _, _, rest = pyproject.read_text(encoding="utf-8").partition("\ndependencies = [")
    return ast.literal_eval(f"[{rest.partition(']')[0]}]")


def check_checkout(pyproject: Path = _PYPROJECT) -> None:
    """Raise ImportError if the package is not installed and a requirement is not met; pip checks installed ones."""
    try:
        version("affnorm-zoo")
    except PackageNotFoundError:
        unmet = unmet_requirements(declared_requirements(pyproject)) if pyproject.is_file() else []
        if unmet:
            raise ImportError(
                f"affnorm_zoo runs from a checkout and lacks {', '.join(unmet)}: install them, or where nothing can be "
                "downloaded carry the wheels that `scripts/gpu_evidence.py pack` collects"
            ) from None


check_checkout()
