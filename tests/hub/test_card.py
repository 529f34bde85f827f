"""The card says what its run's files say, and what they do not say is missing aloud."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from affnorm_zoo.errors import UsageError
from affnorm_zoo.hub.errors import HubError
from affnorm_zoo.hub.export import export_run
from affnorm_zoo.hub.release import build_release, check_card


@pytest.fixture
def finished(finished_runs, tmp_path):
    return shutil.copytree(finished_runs / "resnet", tmp_path / "run")


def test_every_number_is_the_reports(finished):
    report = json.loads((finished / "report.json").read_text())
    text = (export_run(finished) / "README.md").read_text()
    for words in (
        f"| top-1 | {100 * report['val']['top1']:.2f} % (these weights, seed 0) |",
        "| top-1 of other seeds | not measured (n = 1) |",
        "Not measured in this run (`runtime.divergence_updates`).",
        f"| top-5 | {100 * report['val']['top5']:.2f} % |",
        f"| calibration error | {report['val']['ece']:.3f} (15 bins) |",
        f"| parameters | {report['parameters']:,} |",
        "| energy | not measured |",
        "| weights | of the last update |",
        "Not measured for this model.",
        "![loss, learning rate and accuracy over the updates](curves.png)",
        "(W∗x + κ b)",
    ):
        assert words in text, words


def test_the_metadata_survive_a_round_trip(finished):
    card = ModelCard.load(export_run(finished) / "README.md")
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    (result,) = card.data.eval_results
    assert (result.metric_name, result.task_type) == ("top-1 accuracy", "image-classification")
    assert card.data.library_name == "timm"


def test_a_benchmark_in_the_run_is_shown(finished):
    rows = [
        {"normalizer": name, "mode": "train", "compiled": False, "saved_ratio": saved, "ratio": ratio}
        for name, saved, ratio in (("batchnorm", 1.0, 1.0), ("patchnorm", 0.485, 0.99))
    ]
    (finished / "benchmark.json").write_text(json.dumps({"environment": {"device": "two cores"}, "rows": rows}))
    text = (export_run(finished) / "README.md").read_text()
    assert "on two cores:" in text
    assert "| patchnorm | 0.48 | 0.99 |" in text or "| patchnorm | 0.49 | 0.99 |" in text
    assert "Not measured for this model." not in text


def test_other_seeds_give_mean_and_deviation(finished_runs, finished, tmp_path):
    second = finished_runs / "second"
    top1 = [json.loads((run / "report.json").read_text())["val"]["top1"] for run in (finished, second)]
    text = (export_run(finished, [second]) / "README.md").read_text()
    mean, deviation = sum(top1) / 2, abs(top1[0] - top1[1]) / 2**0.5
    assert f"| top-1 of 2 seeds, mean ± standard deviation | {100 * mean:.2f} ± {100 * deviation:.2f} % |" in text
    with pytest.raises(UsageError, match="has the seed 0 again"):
        export_run(finished, [finished])
    with pytest.raises(UsageError, match=r"differs in model.name, model.ema_decay"):
        export_run(finished, [finished_runs / "ema"])


def test_the_runs_divergence_is_shown(finished):
    (finished / "divergence.png").write_bytes(b"a picture")
    folder = build_release(finished)
    assert "(divergence.png)" in (folder / "README.md").read_text()
    assert "Not measured in this run" not in (folder / "README.md").read_text()
    assert (folder / "divergence.png").read_bytes() == b"a picture"


def test_averaged_weights_are_called_so(finished_runs, tmp_path):
    run = shutil.copytree(finished_runs / "ema", tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    text = (export_run(run) / "README.md").read_text()
    assert "| weights | moving average of the updates |" in text
    assert f"| top-1 | {100 * report['ema']['top1']:.2f} %" in text


def test_a_card_that_says_something_else_is_not_published(finished):
    folder = build_release(finished)
    card = folder / "README.md"
    top1 = json.loads((finished / "report.json").read_text())["val"]["top1"]
    card.write_text(card.read_text().replace(f"value: {top1}", "value: 0.99"))
    with pytest.raises(HubError, match=r"says top-1 accuracy 0.99, the report"):
        check_card(card)
    card.write_text(card.read_text().replace("license: apache-2.0\n", ""))
    with pytest.raises(HubError, match="a licence"):
        check_card(card)


def test_a_release_is_the_same_when_built_again(finished):
    first = (build_release(finished) / "manifest.json").read_bytes()
    assert (build_release(finished) / "manifest.json").read_bytes() == first
