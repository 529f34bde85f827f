"""What the documents say is true: their Python runs, their commands name what exists."""

import json
import re
import statistics
from pathlib import Path

import pytest
import timm
import yaml
from forks import run_forked

from affnorm_zoo import list_normalizers
from affnorm_zoo._version import __version__
from affnorm_zoo.factory import FAMILIES
from affnorm_zoo.models import zoo_models

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language):
    for document in DOCUMENTS:
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)):
            yield pytest.param(block, id=f"{document.name}-{number}")


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python_runs(block, tmp_path):
    run_forked("-c", block, cwd=tmp_path, fresh=True)  # so that it registers the models itself


@pytest.mark.parametrize("block", list(blocks("bash")))
def test_commands_name_files_that_exist(block):
    for path in re.findall(r"(?:scripts|configs|tests)/[\w/.]+\.\w+", block):
        assert (ROOT / path).is_file(), path


def test_the_readme_names_every_normaliser_and_a_page_every_model():
    text = (ROOT / "README.md").read_text()
    for name in list_normalizers():
        assert f"`{name}`" in text
    page = (ROOT / "docs/models.md").read_text()
    table = page.partition("## Architectures")[2].partition("\n## ")[0]
    found = set()
    for row in table.splitlines():
        if row.startswith("| `models/"):
            _, architectures, norms = (re.findall(r"`([\w/.]+)`", cell) for cell in row.strip("| ").split(" | "))
            found |= {f"{architecture}_{norm}" for architecture in architectures for norm in norms}
    assert found == set(zoo_models())


def test_a_page_names_every_family_that_can_be_bound():
    text = (ROOT / "docs/normalisers.md").read_text()
    for family in FAMILIES:
        assert f"- {family.describe()}\n" in text


def test_the_changelog_counts_the_models():
    zoo = [m for m in timm.list_models() if timm.model_entrypoint(m).__module__.startswith("affnorm_zoo.")]
    assert f"{len(zoo)} timm entry points" in (ROOT / "CHANGELOG.md").read_text()


def test_the_divergence_table_is_that_of_its_file():
    page = (ROOT / "docs/divergence.md").read_text()
    models = json.loads((ROOT / "docs/divergence/resnet50.json").read_text())["models"].values()
    rows = {"p99/p1 of the self factor (least to largest)": [], "its standard deviation over its mean": [],
            "share of the factor from other positions": [], "how far samples move each other": []}  # fmt: skip
    for model in models:
        layers = model["layers"][:-1]
        assert len(layers) == 53
        spread = [layer["p99_over_p1"] for layer in layers]
        low, middle, high = (f(spread) for f in (min, statistics.median, max))
        rows["p99/p1 of the self factor (least to largest)"].append([middle, low, high])
        rows["its standard deviation over its mean"].append([statistics.median(layer["cv"] for layer in layers)])
        shares = [layer["cross_factor"]["mean"] / layer["factor"]["mean"] for layer in layers]
        rows["share of the factor from other positions"].append([statistics.median(shares)])
        others = [layer["interference"]["p50"] for layer in layers]
        rows["how far samples move each other"].append([statistics.median(others)])
    for name, expected in rows.items():
        cells = re.search(rf"\| {re.escape(name)} \| (.*) \|\n", page).group(1).split(" | ")
        for cell, values in zip(cells, expected, strict=True):
            shown = [float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?", cell)]
            assert shown == pytest.approx(values, rel=0.06), name


def test_the_table_of_attention_is_that_of_its_file():
    page = (ROOT / "docs/divergence.md").read_text()
    models = list(json.loads((ROOT / "docs/divergence/vit_nano.json").read_text())["models"].values())
    for kind in ("mixed values", "logits"):
        for start, when in enumerate(("untrained", "trained")):
            line = re.search(rf"\| {kind}, {when}.*? \| (.*) \|\n", page).group(1)
            for cell, model in zip(line.split(" | "), models[start::2], strict=True):
                rows = [row for row in model["attention"] if row["kind"] == kind]
                assert len(rows) == 6
                factor = statistics.median(row["factor"]["mean"] for row in rows)
                assert [float(n) for n in cell.split(", ")] == pytest.approx(
                    [factor, statistics.median(row["cv"] for row in rows)], rel=0.06, abs=0.005
                )


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_are_valid_yaml_and_name_existing_commands(path):
    text = path.read_text()
    assert yaml.safe_load(text)["name"]
    for command in re.findall(r"python -c \"(.+?)\"`", text):
        run_forked("-c", command, fresh=True)
    for script in re.findall(r"run: (\.\S+)$", text, re.MULTILINE):
        assert (ROOT / script).is_file()
