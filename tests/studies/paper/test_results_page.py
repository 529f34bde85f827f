"""docs/results.md is what the command makes of the runs beside it."""

import json
import shutil

from runs import ROOT

from affnorm_zoo.studies.paper import EXPERIMENTS, load_paper_config, write_report
from affnorm_zoo.studies.paper.execute import PACKED, Results
from affnorm_zoo.studies.paper.table import rows_of

OLD = {"fc", "batch-size", "conv", "scale-invariance", "alignment", "natural-gradient"}  # of re-encoded images


def test_the_page_is_written_from_the_runs(tmp_path):
    shutil.copytree(ROOT / "docs/results", tmp_path / "results")
    write_report(tmp_path / "results", ROOT / "configs/paper", tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs/results.md").read_text()


def test_enough_seeds_stand_behind_every_cell():
    for name in EXPERIMENTS:
        config = load_paper_config(ROOT / "configs/paper" / f"{name}.yaml")
        rows = rows_of(name, config, Results(ROOT / "docs/results" / name))
        assert len(rows) == len(list(EXPERIMENTS[name](config))), name
        assert {len(row.results) for row in rows} == {config.seeds}, name
        assert config.seeds >= (3 if name == "conv" else 5)


def test_every_run_says_where_it_was_made():
    for file in sorted((ROOT / "docs/results").rglob(PACKED)):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            assert record["data"] == ("cifar10" if file.parent.name in OLD else "cifar10_original")
            assert record["environment"]["torch"]
            assert record["threads"] == 1
