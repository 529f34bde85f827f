"""The floors: a module imports only from the floors below its own."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "affnorm_zoo"
FLOORS = {
    "errors": 0, "_version": 0, "_requirements": 0,
    "functional": 1, "config": 1, "evidence": 1,
    "kernels": 2, "registry": 2,
    "ops": 3,
    "layers": 4,
    "factory": 5, "data": 5, "diagnostics": 5, "pruning": 5,
    "models": 6, "evaluation": 6,
    "runs": 7, "conversion": 7,
    "training": 8, "hub": 8,
    "studies": 9, "demo": 9,
    "benchmarks": 10,
    "cli": 11, "run": 11,
}  # fmt: skip


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("affnorm_zoo"):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("affnorm_zoo"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        assert len(parts) > 1, f"{path} imports the package root"
        assert parts[1] == own or FLOORS[parts[1]] < FLOORS[own], f"{own} must not import {module}"


def test_every_floor_has_modules():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert found == set(FLOORS)


def name_of(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def modules_imported_by(path, known):
    """Names of the package's modules that a file imports, relatively or not, inside a function or not."""
    inside = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield from [name for name in (f"{module}.{alias.name}", module) if name in known][:1]


def test_no_module_imports_itself_through_others():
    known = {name_of(path): path for path in modules()}
    graph = {name: set(modules_imported_by(path, known)) for name, path in known.items()}
    assert sum(map(len, graph.values())) > len(known)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


IMPORT = """
import sys, time
import timm
before = time.process_time()
import affnorm_zoo
ratio = time.process_time() / before
affnorm_zoo.load
print(ratio, *sys.modules)
"""


@pytest.fixture(scope="module")
def imported():
    """Processor time with the package over that of timm alone, in a fresh interpreter, and what was imported."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORT]

    def measure():
        ratio, *modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return float(ratio), modules

    found = [measure()]
    while min(found)[0] > 1.15 and len(found) < 5:  # what else runs disturbs single measurements
        found.append(measure())
    return min(found)


def test_importing_costs_little_beside_timm(imported):
    assert imported[0] <= 1.15


def test_loading_a_model_needs_neither_accelerate_nor_the_training_loop(imported):
    modules = set(imported[1])
    assert "affnorm_zoo.hub.pull" in modules
    assert not {"accelerate", "affnorm_zoo.training"} & modules
