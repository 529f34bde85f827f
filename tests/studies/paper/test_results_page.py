"""docs/results.md is what the command makes of the runs beside it."""

import json
import shutil
from statistics import mean

import pytest
from runs import ROOT

from affnorm_zoo.studies.paper import EXPERIMENTS, load_paper_config, write_report
from affnorm_zoo.studies.paper.execute import PACKED, Results
from affnorm_zoo.studies.paper.judges import IS_AHEAD, judge
from affnorm_zoo.studies.paper.table import rows_of

RE_ENCODED = {"fc", "batch-size", "conv", "scale-invariance", "alignment", "natural-gradient"}  # as JPEG


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


def test_a_lead_over_the_standard_methods_is_that_of_the_means():
    accuracies = {}
    for line in (ROOT / "docs/results/fc-adam/runs.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["score"] == "test":
            accuracies.setdefault(record["net"], {}).setdefault(record["method"], []).append(record["accuracy"])
    leads = {
        net: 100
        * (mean(of["affine_like_rms"]) - max(mean(of[m]) for m in ("none", "batchnorm", "layernorm", "rmsnorm")))
        for net, of in accuracies.items()
    }
    config = load_paper_config(ROOT / "configs/paper/fc-adam.yaml")
    rows = rows_of("fc-adam", config, Results(ROOT / "docs/results/fc-adam"))
    (claim,) = (c for c in judge("fc-adam", rows) if c.statement == f"affine_like_rms {IS_AHEAD}")
    assert [estimate.value for estimate in claim.effects.values()] == pytest.approx(list(leads.values()))
    assert claim.measured.startswith(f"highest mean in {sum(lead > 0 for lead in leads.values())} of 3 nets")


def test_every_run_says_where_it_was_made():
    for file in sorted((ROOT / "docs/results").rglob(PACKED)):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            assert record["data"] == ("cifar10" if file.parent.name in RE_ENCODED else "cifar10_original")
            assert record["environment"]["torch"]
            assert record["threads"] == 1
