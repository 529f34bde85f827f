"""What one update does: its gradient, its averages, its rate."""

import json

import numpy as np
import pytest
import timm
import torch
from parts import parts_of
from runs import EVERYTHING, SMALL_VIT, TINY, assert_same_run, invoke, run, state, train_here
from safetensors.torch import load_file

from affnorm_zoo.cli.evaluate import evaluate
from affnorm_zoo.config import load_config
from affnorm_zoo.data import BatchAugment
from affnorm_zoo.hub import export_run
from affnorm_zoo.training.state import unwrap_optimizer


def gradient_of_window(parts, window):
    """The gradient that the loop makes of a window, before any step."""
    found = {}
    trainer = parts.trainer
    trainer._step = lambda lr: (
        found.update({n: p.grad.clone() for n, p in trainer.state.bare_model.named_parameters()}),
        torch.zeros(()),
    )[1]
    trainer.state.progress.window = window
    next(trainer.windows())
    return found


@pytest.mark.parametrize(("micro", "window"), [(32, 0), (128, 1), (128, 5), (48, 5)], ids=str)
def test_the_gradient_of_a_window_is_that_of_its_images_at_once(micro, window):
    # 1437 images are five windows of 256 and one of 157, which micro-batches of 128 or 48 do not fill
    batch = 256 if micro != 48 else 240
    parts = parts_of(f"train.micro_batch_size={micro}", f"train.global_batch_size={batch}", "data.drop_last=false")
    found = gradient_of_window(parts, window)
    trainer = parts.trainer
    model, loader = trainer.state.bare_model.double(), trainer.loader
    model.zero_grad()
    keys = trainer.batches.global_batch(0, window)
    assert len(keys) == min(batch, 1437 - window * batch)
    trainer.batches.set_epoch(0, window)
    trainer.batches.micro_batch_size = len(keys)
    images, labels = next(iter(loader))
    torch.nn.functional.cross_entropy(model(trainer.normalize(images).double()), labels).backward()
    for name, parameter in model.named_parameters():
        # float32 sums of up to 256 images, against float64
        torch.testing.assert_close(found[name].double(), parameter.grad, rtol=1e-3, atol=1e-5)


def test_overflows_of_float16_advance_neither_average_nor_schedule():
    # few images, as autocast is bfloat16 here, in which some processors are slow
    parts = parts_of("model.ema_decay=0.9", "train.global_batch_size=32", "train.micro_batch_size=null")
    trainer, progress = parts.trainer, parts.trainer.state.progress
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6)
    trainer.loss = lambda *batch: 2.0**15 * torch.nn.functional.cross_entropy(*batch)  # whose scaled gradients overflow
    trainer.accelerator.scaler = scaler
    trainer.accelerator.native_amp = True
    trainer.state.optimizer = trainer.accelerator.prepare_optimizer(trainer.state.optimizer.optimizer)
    before = {name: t.clone() for name, t in trainer.state.ema.state_dict().items()}
    next(trainer.windows())
    assert (progress.windows, progress.updates) == (1, 0)
    assert all(torch.equal(t, before[name]) for name, t in trainer.state.ema.state_dict().items())
    first = trainer.state.optimizer.param_groups[0]["lr"]
    for _ in range(40):  # the scale halves until the gradients fit
        if progress.updates:
            break
        assert trainer.state.optimizer.param_groups[0]["lr"] == first
        progress.window = 0
        next(trainer.windows())
    assert progress.updates == 1
    assert trainer.state.optimizer.param_groups[0]["lr"] != first
    assert not all(torch.equal(t, before[name]) for name, t in trainer.state.ema.state_dict().items())
    trainer.drain()  # the overflows were no failures


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("model", ["resnet20_cifar_patchnorm", "resnet20_cifar_batchnorm"])
def test_the_average_is_that_of_float64(model, warmup):
    parts = parts_of("model.ema_decay=0.8", f"model.ema_warmup={warmup}", f"model.name={model}")
    state_ = parts.trainer.state
    truth = {name: t.double().clone() for name, t in state_.bare_model.state_dict().items()}
    for _ in parts.trainer.windows():
        k = max(state_.progress.updates - 1, 0)
        decay = min(0.8, 1 - (1 + k) ** (-2 / 3)) if warmup else 0.8
        decay = decay if k else 0.0  # the first update begins the average
        for name, tensor in state_.bare_model.state_dict().items():
            if tensor.is_floating_point():
                truth[name].mul_(decay).add_(tensor.double(), alpha=1 - decay)
            else:
                truth[name] = tensor.double()
    for name, tensor in state_.ema.state_dict().items():
        # five float32 steps, each within an ulp of the larger of two values
        torch.testing.assert_close(tensor.double(), truth[name].double(), rtol=1e-5, atol=1e-6)


def test_mixing_ends_with_its_epoch():
    config = load_config(overrides=["data.mixup=1.0", "data.mixup_off_epoch=2"]).data
    augment = BatchAugment(config, 10, 0.0, torch.device("cpu"))
    images, labels = torch.randn(8, 3, 4, 4), torch.arange(8)
    for epoch, is_one_hot in ((0, False), (1, False), (2, True), (3, True)):
        augment.set_epoch(epoch)
        np.random.seed(epoch)
        _, targets = augment(images.clone(), labels)
        assert bool((targets.max(1).values == 1).all()) == is_one_hot
        assert torch.allclose(targets.sum(1), torch.ones(8))


def one_step(*overrides):
    """What the first update is made of: the gradient and value of every parameter by name, the norm, and the model."""
    trainer, seen = parts_of("optim.name=sgd", *overrides).trainer, {}
    optimizer = unwrap_optimizer(trainer.state.optimizer)
    original = optimizer.step
    optimizer.step = lambda: (
        seen.update({n: (p.grad.clone(), p.detach().clone()) for n, p in trainer.state.bare_model.named_parameters()}),
        original(),
    )
    next(trainer.windows())
    (window,) = trainer.drain()
    return seen, window, trainer.state.bare_model


@pytest.mark.parametrize(("mode", "limit"), [("value", 0.01), ("agc", 0.01), ("norm", 0.1)])
def test_clipping_bounds_what_it_says_and_logs_what_it_was(mode, limit):
    seen, window, _ = one_step(f"optim.clip_mode={mode}", f"optim.clip_grad={limit}")
    total = torch.stack([g.norm() for g, _ in seen.values()]).norm()
    assert total < window.grad_norm
    if mode == "norm":
        assert total == pytest.approx(limit, rel=1e-4)
    elif mode == "value":
        assert max(g.abs().max() for g, _ in seen.values()) <= limit
    else:
        for name, (gradient, weight) in seen.items():
            if not name.startswith("fc"):
                rows = (len(weight), -1) if weight.ndim > 1 else (1, -1)
                bound = limit * weight.view(rows).norm(dim=1).clamp(min=1e-3)
                assert (gradient.view(rows).norm(dim=1) <= bound * 1.0001).all(), name


@pytest.mark.parametrize("model", [(), SMALL_VIT])
def test_a_limit_on_the_norm_counts_a_bias_as_kappa_times_itself(model):
    limit = 0.1
    clipped, window, net = one_step("optim.bias_over_kappa=true", f"optim.clip_grad={limit}", *model)
    plain, _, _ = one_step("optim.bias_over_kappa=true", *model)
    kappas = {f"{name}.bias": layer.kappa for name, layer in net.named_modules() if hasattr(layer, "kappa")}
    assert len(kappas) >= 7
    norm = torch.stack([g.norm() / kappas.get(name, 1.0) for name, (g, _) in plain.items()]).norm()
    assert float(window.grad_norm) == pytest.approx(float(norm), rel=1e-5)
    for name, (gradient, _) in clipped.items():
        torch.testing.assert_close(gradient, plain[name][0] * (limit / norm), rtol=1e-4, atol=0)


def test_checkpointed_activations_give_the_same_gradients(tmp_path):
    for switch in ("false", "true"):
        train_here(tmp_path / switch, f"model.grad_checkpointing={switch}", "model.name=resnet20_cifar_patchnorm")
    assert_same_run(tmp_path / "false", tmp_path / "true")


@pytest.mark.parametrize(("fused", "calls"), [("true", 2), ("false", 0)], ids=["fused", "unfused"])
def test_attention_is_fused_only_where_the_config_says_so(monkeypatch, fused, calls):
    """One call in each of the two blocks; without it the gradient is the same."""
    seen, fused_attention = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: (seen.append(1), fused_attention(*args, **kwargs))[1],
    )
    small = (*SMALL_VIT, "train.global_batch_size=8", "train.micro_batch_size=8")
    expected = gradient_of_window(parts_of(*small), 0)
    parts = parts_of(*small, f"runtime.fused_attn={fused}")
    seen.clear()
    found = gradient_of_window(parts, 0)
    assert len(seen) == calls
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_bce_and_memory_layout_train(tmp_path):
    report = train_here(tmp_path, "optim.loss=bce", "runtime.channels_last=true", "train.epochs=3", "optim.lr=4e-3",
                        "train.global_batch_size=32", "train.micro_batch_size=32")  # fmt: skip
    assert report["val"]["top1"] > 0.3


@pytest.mark.slow
def test_a_compiled_runs_checkpoint_is_an_uncompiled_ones(tmp_path):
    arguments = ("scripts/train.py", *TINY)
    run(*arguments, "runtime.compile=true", "train.max_updates=6", "--output", tmp_path / "compiled")
    weights = load_file(tmp_path / "compiled/checkpoints/window_00000006/model.safetensors")
    assert not [name for name in weights if name.startswith(("module.", "_orig_mod."))]
    result = run(*arguments, "--output", tmp_path / "compiled", "--resume", "auto", processes=2)
    assert "runtime.compile was True and is False" in result.stderr
    assert state(tmp_path / "compiled")["state"] == "completed"
    timm.create_model("resnet20_cifar_patchnorm", in_chans=1, layers=[1, 1, 1]).load_state_dict(weights)


def test_the_averaged_weights_are_what_is_exported(tmp_path):
    train_here(tmp_path / "run", *EVERYTHING)
    report = json.loads((tmp_path / "run/report.json").read_text())
    measured = json.loads(invoke(evaluate, export_run(tmp_path / "run"), "runtime.device=cpu").stdout)
    assert measured["top1"] == report["ema"]["top1"]
    assert measured["loss"] == pytest.approx(report["ema"]["loss"], rel=1e-6)
    assert report["ema"]["loss"] != report["val"]["loss"]
    card = (tmp_path / "run/export/README.md").read_text()
    assert f"| top-1 | {100 * report['ema']['top1']:.2f} %" in card
