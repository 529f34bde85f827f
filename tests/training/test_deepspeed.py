"""What can be said of DeepSpeed without a GPU: its settings, and, where it is installed, one process on a CPU."""

from types import SimpleNamespace

import pytest
from runs import ROOT, TINY, metrics, run, train_here

from affnorm_zoo.config import load_config
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training.deepspeed import configure_deepspeed


def accelerator(stage=2):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": stage}})
    return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))


def test_it_is_told_batch_and_clipping():
    fake = accelerator()
    configure_deepspeed(fake, load_config(overrides=["optim.clip_grad=0.5"]), 32, "none")
    settings = fake.state.deepspeed_plugin.deepspeed_config
    assert settings["train_micro_batch_size_per_gpu"] == 32
    assert settings["gradient_clipping"] == 0.5
    assert settings["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("stage", "overrides", "resume", "message"),
    [
        (3, "train.seed=0", "none", "zero_stage must be 1 or 2, got 3"),
        (1, "train.seed=0", "auto", "--resume"),
        (1, "train.non_finite=skip", "none", "train.non_finite=skip"),
        (1, "optim.clip_grad=1 optim.bias_over_kappa=true", "none", "optim.clip_grad is not possible with optim.bias_"),
        (1, "runtime.divergence_updates=5", "none", "runtime.divergence_updates"),
    ],
)
def test_what_it_cannot_do_is_refused(stage, overrides, resume, message):
    with pytest.raises(UsageError, match=message):
        configure_deepspeed(accelerator(stage), load_config(overrides=overrides.split()), 32, resume)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("optim.clip_grad=0.1", "model.ema_decay=0.9", "train.micro_batch_size=64")])
def test_one_process_trains_as_without_it(extra, tmp_path):
    """Needs the extra ``deepspeed`` and a C++ compiler."""
    pytest.importorskip("deepspeed")
    config = tmp_path / "deepspeed.yaml"
    text = (ROOT / "configs/accelerate/deepspeed_zero2.yaml").read_text()
    text = text.replace("num_processes: 8", "num_processes: 1\nuse_cpu: true").replace("bf16", "'no'")
    config.write_text(text)
    # a TINY run, on the device that is found
    settings = [setting for setting in TINY if not setting.startswith("runtime.device")]
    run(
        "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", 29533, "scripts/train.py",
        *settings, *extra, "train.max_updates=6", "--output", tmp_path / "deepspeed", DS_ACCELERATOR="cpu",
    )  # fmt: skip
    train_here(tmp_path / "plain", *extra, "train.max_updates=6")
    ours, theirs = (metrics(tmp_path / name, "update") for name in ("deepspeed", "plain"))
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm", "lr"):
            assert one[name] == pytest.approx(other[name], rel=1e-3), (one, other)
    assert not (tmp_path / "deepspeed" / "checkpoints").exists()
    assert (tmp_path / "deepspeed" / "export" / "model.safetensors").is_file()
