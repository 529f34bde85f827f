"""The path from a config to the page, on the embedded digits."""

import json

import pytest
import torch
from runs import ROOT, invoke

from affnorm_zoo.cli.reproduce import reproduce
from affnorm_zoo.config import DataConfig
from affnorm_zoo.errors import UsageError
from affnorm_zoo.studies.paper import EXPERIMENTS, load_paper_config, run_experiment
from affnorm_zoo.studies.paper.execute import Results
from affnorm_zoo.studies.paper.experiments import batch_sizes, final_trials, tuned_rate, tuning_trials
from affnorm_zoo.studies.paper.nets import build_net
from affnorm_zoo.studies.paper.report import write_report
from affnorm_zoo.studies.paper.table import rows_of
from affnorm_zoo.studies.paper.trial import Trial, evaluate, load_arrays, train_net

CONFIGS = ROOT / "configs/paper"


def quick(name):
    return load_paper_config(CONFIGS / f"{name}.yaml", quick=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("paper") / "results"
    result = invoke(reproduce, "all", "--quick", "--workers", 1, "--configs", CONFIGS, "--output", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def arrays():
    return load_arrays(DataConfig(), 200, 100)


def a_run(**kwargs):
    settings = {
        "net": "tanh-1x8",
        "method": "affine_like",
        "rate": 1.0,
        "batch_size": 16,
        "epochs": 2,
        "num_train": 200,
    }
    return Trial(**{**settings, "seed": 0, "score": "val", **kwargs})


def test_every_experiment_gives_a_table_a_figure_and_verdicts(folder, tmp_path):
    page = tmp_path / "results.md"
    write_report(folder, CONFIGS, folder.parent / "results.md", quick=True)
    text = (folder.parent / "results.md").read_text()
    for name in EXPERIMENTS:
        assert f"## {name}\n" in text
        assert f"\n| {name} | " in text or name == "conv"  # its quick form has no rival
        assert (folder / name / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "nan" not in text
    assert not page.exists()


def test_what_is_packed_is_what_was_run(folder):
    whole = Results(folder / "fc")
    whole.pack()
    lines = (folder / "fc/runs.jsonl").read_text().splitlines()
    assert len(lines) == len(whole) == len(list((folder / "fc/runs").iterdir()))
    assert [json.loads(line)["name"] for line in lines] == sorted(json.loads(line)["name"] for line in lines)


def test_nothing_is_run_twice_and_an_interrupted_experiment_goes_on(folder, monkeypatch, tmp_path):
    from affnorm_zoo.studies.paper import execute

    trained = []
    monkeypatch.setattr(execute, "train_net", lambda trial, arrays: trained.append(trial) or train_net(trial, arrays))
    run_experiment("fc", quick("fc"), DataConfig(), folder / "fc", workers=1)
    assert trained == []
    removed = sorted((folder / "fc/runs").iterdir())[0]
    before = json.loads(removed.read_text())
    (folder / "fc/runs.jsonl").unlink(missing_ok=True)
    removed.unlink()
    run_experiment("fc", quick("fc"), DataConfig(), folder / "fc", workers=1)
    assert [trial.name for trial in trained] == [removed.stem]
    assert json.loads(removed.read_text())["accuracy"] == before["accuracy"]


@pytest.mark.slow
def test_processes_give_what_one_gives(folder, tmp_path):
    """The same runs in two processes, to the bit."""
    run_experiment("fc", quick("fc"), DataConfig(), tmp_path / "fc", workers=2)
    alone, together = Results(folder / "fc"), Results(tmp_path / "fc")
    for cell in EXPERIMENTS["fc"](quick("fc")):
        for trial in tuning_trials(quick("fc"), cell):
            assert alone.get(trial)["loss"] == together.get(trial)["loss"]


def test_the_rate_is_tuned_on_images_that_neither_train_nor_test(folder):
    config, results = quick("fc"), Results(folder / "fc")
    for cell in EXPERIMENTS["fc"](config):
        tuning = tuning_trials(config, cell)
        assert {trial.score for trial in tuning} == {"val"}
        best = max(results.get(trial)["accuracy"] for trial in tuning)
        rate = tuned_rate(config, cell, results)
        assert [results.get(trial)["accuracy"] for trial in tuning if trial.rate == rate] == [best]
        final = final_trials(config, cell, results)
        assert {trial.score for trial in final} == {"test"}
        assert len({trial.seed for trial in final}) == config.seeds
        assert {trial.seed for trial in final}.isdisjoint({trial.seed for trial in tuning})


def test_the_three_splits_do_not_meet():
    arrays = load_arrays(DataConfig(), 10_000, 100)
    assert {split: len(images) for split, images in arrays.images.items()} == {"val": 100, "train": 1337, "test": 360}
    rows = [{bytes(image.numpy().tobytes()) for image in images} for images in arrays.images.values()]
    assert sum(map(len, rows)) - len(set.union(*rows)) <= 3  # a few scans are alike
    normal = arrays.normalised("train", slice(None))
    torch.testing.assert_close(normal.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_a_run_is_a_function_of_its_description(arrays):
    one, two = (train_net(a_run(), arrays) for _ in range(2))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert train_net(a_run(seed=1), arrays)["loss"] != one["loss"]


def test_half_the_rate_is_half_the_rate(arrays):
    half = train_net(a_run(method="norm_like_half", rate=2.0), arrays)
    assert half["loss"] == train_net(a_run(method="norm_like", rate=1.0), arrays)["loss"]


def test_a_diverged_run_scores_nothing_and_is_kept(arrays):
    result = train_net(a_run(net="leaky_relu-1x8", method="none", rate=1e38), arrays)
    assert result["diverged"]
    assert result["accuracy"] == 0.0
    json.dumps(result, allow_nan=False)


def test_another_optimiser_makes_another_run_with_a_name_of_its_own(arrays):
    usual, other = (a_run(method="norm_like", rate=0.01, optimizer=name) for name in ("sgd", "adam"))
    assert usual.name != other.name
    assert train_net(usual, arrays)["loss"] != train_net(other, arrays)["loss"]


@pytest.mark.parametrize("changed", [{"start": "unit_outputs"}, {"map_classifier": True}])
def test_another_start_or_classifier_makes_another_run_with_a_name_of_its_own(arrays, changed):
    usual, other = a_run(method="norm_like", rate=0.01), a_run(method="norm_like", rate=0.01, **changed)
    assert usual.name != other.name
    assert train_net(usual, arrays)["loss"] != train_net(other, arrays)["loss"]


def test_adam_is_torchs_adam(arrays):
    trial = a_run(method="none", optimizer="adam", rate=0.01, epochs=1, batch_size=200)
    net = build_net(trial.net, "none", (1, 8, 8), 10, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    x, labels = arrays.normalised("train", order), arrays.labels["train"][order]
    torch.nn.functional.cross_entropy(net(x), labels).backward()
    optimizer.step()
    assert train_net(trial, arrays)["loss"] == pytest.approx(evaluate(net, arrays, "val")[1], rel=1e-6)


def test_scaled_rates_are_in_proportion_to_the_batch():
    config = quick("batch-size")
    cells = [cell for cell in batch_sizes(config) if cell.method == "affine_like"]
    found = sorted((cell.batch_size, cell.rate_factor) for cell in cells)
    assert found == [(16, 0.5), (16, 1.0), (32, 1.0), (64, 1.0), (64, 2.0)]


def test_a_cell_without_all_its_tuning_is_not_shown(tmp_path, folder):
    config, results = quick("fc"), Results(folder / "fc")
    cell = next(EXPERIMENTS["fc"](config))
    del results._by_name[tuning_trials(config, cell)[0].name]
    assert cell not in [row.cell for row in rows_of("fc", config, results)]


def test_results_of_other_data_are_not_mixed_in(tmp_path, folder):
    other = tmp_path / "fc"
    results = Results(other)
    results.keep(a_run(), {"data": "cifar10"})
    with pytest.raises(UsageError, match="holds results on cifar10, not digits"):
        run_experiment("fc", quick("fc"), DataConfig(), other, workers=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nets: [tanh-1x2]\nmethods: [none]\nrates: [1]\nrate: 2", "rate"),
        ("nets: []\nmethods: [none]\nrates: [1]", "nets must name"),
        ("nets: [tanh-1x2]\nmethods: [none]\nrates: [1]\nseeds: 0", "seeds must be positive"),
        ("nets: [tanh-1x2]\nmethods: [none]\nrates: [1]\noptimizer: lion", "optimizer must be one of sgd, adam, got"),
        (
            "nets: [tanh-1x2]\nmethods: [none]\nrates: [1]\nstart: zero",
            "start must be one of fan_in, unit_outputs, got",
        ),
        ("nets: [", "fc.yaml"),
    ],
)
def test_a_wrong_config_is_told(text, message, tmp_path):
    (tmp_path / "fc.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_paper_config(tmp_path / "fc.yaml")
    with pytest.raises(UsageError, match=r"does not exist; did you mean .*fc.yaml"):
        load_paper_config(tmp_path / "fb.yaml")
