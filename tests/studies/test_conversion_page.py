"""docs/conversion.md: its table is what the results say, and its study can be resumed."""

import shutil
from pathlib import Path

import pytest
from pictures import draw_folder
from runs import invoke

from affnorm_zoo.cli.conversion import conversion
from affnorm_zoo.config import load_config
from affnorm_zoo.runs.files import read_json
from affnorm_zoo.studies import conversion as study
from affnorm_zoo.studies.conversion_report import BEGIN, END, TARGETS, tables

ROOT = Path(__file__).parents[2]
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_the_page_is_what_the_command_writes(tmp_path):
    page = shutil.copy(ROOT / "docs/conversion.md", tmp_path)
    results = ROOT / "docs/conversion/resnet20_cifar.json"
    assert invoke(conversion, "report", "--page", page, "--results", results).exit_code == 0
    assert Path(page).read_text() == (ROOT / "docs/conversion.md").read_text()
    assert Path(page).read_text().count(BEGIN) == Path(page).read_text().count(END) == 1


def test_a_table_says_what_is_lost_and_what_was_not_measured():
    shot = {"kind": "one shot", "scale": "rms4", "fit": "channel", "mean_share": 0.08}
    rows = [
        {"kind": "source", "top1": 0.9},
        {**shot, "seed": 0, "top1": 0.89, "logit_error": 0.1},
        {**shot, "seed": 1, "top1": 0.88, "logit_error": 0.3},
        {"kind": "fine-tuned", "scale": "rms", "how": "labels", "seed": 0, "top1": 0.91},
    ]
    environment = {"device": "a CPU", "cpu_count": 2, "torch": "2.14"}
    results = dict(source="it", data="pictures", num_test=100, num_images=8, rows=rows, environment=environment)
    page = tables(results)
    assert '| 4√n | one shot, `fit="channel"` | 88.50 ± 0.71 | 2 | 1.50 | 0.200 | 0.080 | 0.6, 0.3 |' in page
    assert "| √n | then 20,000 images, with labels | 91.00 | 1 | -1.00 |  |  | 0.9, 0.3 |" in page
    assert "| √n | then 20,000 images, distilled, no labels | not measured | 0 |" in page
    assert page.endswith("Measured on a CPU with torch 2.14.\n")
    assert tables({}) == "Not measured yet.\n"
    assert all(scale in ("rms", "rms4", "rms10") for scale, _ in TARGETS)


def test_a_study_keeps_what_is_finished(tmp_path, monkeypatch):
    data = draw_folder(tmp_path / "pictures", splits=("train", "test"), classes=CIFAR10, per_class=4, size=32)
    monkeypatch.setattr(study, "NUM_IMAGES", 16)
    monkeypatch.setattr(study, "FINE_TUNED_IMAGES", 20)
    monkeypatch.setattr(study, "ONE_SHOT", (("rms4", "layer"),))
    monkeypatch.setattr(study, "FINE_TUNED", ("distilled",))
    config = tmp_path / "finetune.yaml"
    config.write_text(
        "model: {name: resnet20_cifar_patchnorm}\noptim: {lr: 1e-4, warmup_epochs: 0}\n"
        "train: {epochs: 1, global_batch_size: 10}\n"
    )

    def run():
        overrides = [f"data.path={data}", "data.val_split=test"]
        results = tmp_path / "results.json"
        study.Study(load_config(overrides=overrides).data, config, results, tmp_path / "work").run(1)
        return read_json(results)["rows"]

    rows = run()
    assert [row["kind"] for row in rows] == ["source", "one shot", "fine-tuned"]
    assert rows[2]["updates"] == 2
    assert 0 < rows[1]["mean_share"] < 1
    monkeypatch.setattr(study, "convert", lambda *args, **kwargs: pytest.fail("finished conversions are kept"))
    assert run() == rows
