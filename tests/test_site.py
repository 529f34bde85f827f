"""The documentation site: what its generators write, and that no link leads nowhere. The site itself is built in CI."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from generated_pages import config_page, normaliser_page, rows_about
from references import find

from affnorm_zoo import get_normalizer, list_normalizers
from affnorm_zoo.config import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
SOURCES = sorted((ROOT / "affnorm_zoo").rglob("*.py"))


def anchors(page):
    titles = re.findall(r"^#{1,3} (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_refer_to_what_exists(path):
    module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    tree = ast.parse(path.read_text())
    documented = [(module, node) for node in (tree, *tree.body)]
    documented += [(f"{module}.{c.name}", node) for c in tree.body if isinstance(c, ast.ClassDef) for node in c.body]
    for scope, node in documented:
        text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else ""
        for target in re.findall(r":(?:func|class|meth|mod|attr|data|exc):`([^`]+)`", text or ""):
            within = f"{scope}.{node.name}" if isinstance(node, ast.ClassDef) else scope
            assert find(target, within) is not None, f"{within} refers to {target}"


def test_the_config_reference_has_every_field_and_its_comment():
    page = config_page()
    for section in fields(RunConfig):
        table = page.partition(f"## {section.name}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert rows == [field.name for field in fields(section.default_factory)]
    source = (ROOT / "affnorm_zoo/config/data.py").read_text()
    comment = re.search(r"hold_out: int = 0  # (.+)", source).group(1)
    assert f"| `hold_out` | `int` | `0` | {comment} |" in page


@pytest.mark.parametrize("name", list_normalizers())
def test_a_normaliser_has_a_page_with_its_formula_and_its_measurements(name):
    page = normaliser_page(get_normalizer(name))
    assert get_normalizer(name).formula in page
    for anchor in re.findall(r"derivations\.md#([\w-]+)", page):
        assert anchor in {a.replace("_", "-") for a in anchors(ROOT / "docs/derivations.md")}
    for link in re.findall(r"\]\((?!https:)([^)#\s]+)", page):
        assert (ROOT / "docs/_generated/normalisers" / link).resolve().exists(), link
    results = (ROOT / "docs/recipes.md").read_text()
    assert ("## Measured" in page) == (f"| {name} |" in results)


def test_rows_of_another_normaliser_are_left_out():
    page = "# T\n\n## S\n\n| n | v |\n|---|---|\n| `patchnorm` | 1 |\n| `patchnorm_ws` | 2 |\n"
    assert rows_about("patchnorm", page) == ["*S*\n\n| n | v |\n|---|---|\n| `patchnorm` | 1 |"]
