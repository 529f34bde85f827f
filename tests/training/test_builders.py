"""Optimisers, schedules and rates are built as the config says."""

import copy
import importlib
import json

import pytest
import torch
from parts import parts_of
from runs import SMALL_VIT, train_here
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn

from affnorm_zoo.config import load_config
from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.model import build_model
from affnorm_zoo.training import builders
from affnorm_zoo.training.state import save_state


def not_installed(name):
    return name.startswith(("fused", "bnb")) or name in ("apex",)


OPTIMIZERS = sorted(name for name in list_optimizers() if not not_installed(name))
SUPPORTED = [name for name in OPTIMIZERS if name not in builders.UNSUPPORTED_OPTIMIZERS]
# a class keeps the same state under all its names; kron takes a minute
QUICK = {get_optimizer_info(name).opt_class: name for name in reversed(SUPPORTED) if "kron" not in name}.values()


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in SUPPORTED])
def test_an_optimiser_resumes_to_the_bit(name, tmp_path):
    overrides = (f"optim.name={name}", *SMALL_VIT,
                 "model.kwargs.depth=1", "model.kwargs.embed_dim=24", "train.global_batch_size=8",
                 "train.micro_batch_size=8")  # fmt: skip
    parts = parts_of(*overrides)
    steps = parts.trainer.windows()
    for _ in range(3):
        next(steps)
    save_state(parts.trainer.state.gather(), tmp_path)
    other = parts_of(*overrides)
    other.trainer.state.load(tmp_path)
    other.trainer.schedule.step_update(3)
    others = other.trainer.windows()
    for _ in range(3):
        next(steps), next(others)
    weights, resumed = parts.trainer.state.model_weights(), other.trainer.state.model_weights()
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
    assert [w.loss for w in parts.trainer.drain()[3:]] == [w.loss for w in other.trainer.drain()]


@pytest.mark.parametrize("name", builders.UNSUPPORTED_OPTIMIZERS)
def test_or_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"optim.name={name} is not supported: "):
        parts_of(f"optim.name={name}")


class OnlyInTraining(nn.Module):
    """Fails, or returns more than logits, in training only; has a state and draws random numbers."""

    def __init__(self, returns):
        super().__init__()
        self.norm, self.returns = nn.BatchNorm2d(1), returns

    def forward(self, x):
        x = nn.functional.dropout(self.norm(x), training=self.training)
        if self.training and self.returns is None:
            raise RuntimeError
        return self.returns(x) if self.training else x.flatten(1)


@pytest.mark.parametrize(
    ("returns", "message"),
    [(None, "it cannot be trained on a batch of 9: RuntimeError"), (lambda x: (x, x), "returns a tuple, not logits")],
)
def test_a_model_that_fails_in_training_only_is_refused_before_it(returns, message):
    with pytest.raises(UsageError, match=message):
        builders.check_training_batch("it", OnlyInTraining(returns), (1, 4, 4), 9)


def test_trying_a_model_changes_neither_it_nor_the_random_numbers():
    model = OnlyInTraining(lambda x: x.flatten(1))
    state, before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    builders.check_training_batch("it", model, (1, 4, 4), 9)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "schedule", ["cosine", "tanh", "poly", "step decay_epochs: 2", "multistep decay_milestones: [3]", "constant", "wsd"]
)
def test_every_schedule_is_a_function_of_the_updates(schedule):
    name, _, steps = schedule.partition(" ")
    kwargs = f"{{warmup_lr: 1e-6, {steps}}}"
    parts = parts_of(f"optim.schedule={name}", f"optim.schedule_kwargs={kwargs}", "train.epochs=5")
    schedule_ = parts.trainer.schedule
    rates = []
    for update in (*range(25), *reversed(range(25))):
        schedule_.step_update(update)
        rates.append(parts.trainer.state.optimizer.param_groups[0]["lr"])
    assert rates[:25] == rates[25:][::-1]
    assert rates[0] == 1e-6
    assert 0.9e-3 < max(rates) <= 1e-3


def test_a_schedule_with_a_memory_is_refused():
    with pytest.raises(UsageError, match=r"optim.schedule=plateau keeps a state"):
        load_config(overrides=["optim.schedule=plateau"])
    with pytest.raises(UsageError, match=r"optim.schedule=cosin"):
        parts_of("optim.schedule=cosin")


def test_the_rate_scales_as_it_is_told(tmp_path):
    for rule, expected in (("linear", 2e-3), ("sqrt", 1e-3 * 2**0.5)):
        config = load_config(overrides=["optim.lr_base=1e-3", f"optim.lr_scale={rule}"]).optim
        assert config.learning_rate(512) == pytest.approx(expected)
    train_here(tmp_path, "optim.lr=null", "optim.lr_base=1e-3", "optim.lr_base_size=128", "train.max_updates=1")
    assert json.loads((tmp_path / "run.json").read_text())["learning_rate"] == pytest.approx(2e-3)


def test_layers_decay_their_rates():
    parts = parts_of("optim.layer_decay=0.5", *SMALL_VIT)
    rates = {group["lr"] for group in parts.trainer.state.optimizer.param_groups}
    assert len(rates) == 4  # the embedding, two blocks, the head
    ratios = [a / b for a, b in zip(sorted(rates), sorted(rates)[1:], strict=False)]
    assert ratios == pytest.approx([0.5] * len(ratios))


def test_the_former_module_names_the_new_ones():
    with pytest.warns(DeprecationWarning, match=r"import from affnorm_zoo.training.builders, and build_model from"):
        former = importlib.import_module("affnorm_zoo.training.setup")
    assert (former.build_optimizer, former.build_model) == (builders.build_optimizer, build_model)
