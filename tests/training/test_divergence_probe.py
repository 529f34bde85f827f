"""Looking at a training does not change it."""

import pytest
from runs import metrics, train_here

from affnorm_zoo.errors import UsageError

PROBED = ("runtime.divergence_updates=3", "runtime.divergence_images=4")


def test_a_probed_run_is_the_run(tmp_path):
    plain = train_here(tmp_path / "plain", "train.max_updates=7")
    probed = train_here(tmp_path / "probed", "train.max_updates=7", *PROBED)
    for name in ("loss", "grad_norm"):
        ours, theirs = ([r[name] for r in metrics(tmp_path / run, "update")] for run in ("probed", "plain"))
        assert len(ours) == 7
        assert ours == theirs
    records = metrics(tmp_path / "probed", "divergence")
    assert [record["update"] for record in records] == [0, 3, 6]
    layers = records[-1]["layers"]
    assert len(layers) >= 7
    assert max(layer["cv"] for layer in layers if layer["layer"] != "fc") < 1e-4
    assert all(-1 <= layer["step_cosine"] <= 1 and layer["step_length"] > 0 for layer in layers)
    assert (tmp_path / "probed" / "divergence.png").stat().st_size > 1000
    assert not (tmp_path / "plain" / "divergence.png").exists()
    assert 0 < probed["divergence_seconds"] < probed["seconds"]
    assert "divergence_seconds" not in plain


def test_a_resumed_run_has_every_measurement_once(tmp_path):
    settings = (*PROBED, "checkpoint.every_updates=4")
    train_here(tmp_path / "whole", "train.max_updates=8", *settings)
    train_here(tmp_path / "cut", "train.max_updates=7", *settings)  # within the second epoch
    train_here(tmp_path / "cut", "train.max_updates=8", *settings, resume="auto")
    whole, cut = (metrics(tmp_path / run, "divergence") for run in ("whole", "cut"))
    assert [record["update"] for record in whole] == [0, 3, 6]
    assert [record["layers"] for record in cut] == [record["layers"] for record in whole]


def test_under_mixed_precision_the_copy_steps(tmp_path):
    train_here(tmp_path / "bf16", "train.max_updates=3", "runtime.precision=bf16", *PROBED)
    record = metrics(tmp_path / "bf16", "divergence")[-1]
    assert record["update"] == 3
    assert all(layer["step_length"] > 0 for layer in record["layers"])


@pytest.mark.parametrize("override", ["runtime.divergence_updates=0", "runtime.divergence_images=1"])
def test_what_cannot_be_measured_is_refused(tmp_path, override):
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        train_here(tmp_path, override)
