import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from forks import run_forked
from torch import nn

from affnorm_zoo.evaluation import evaluate


def test_shares_of_any_size_give_what_one_process_gives():
    (alone,) = [json.loads(run_forked("tests/support/evaluate_uneven.py").stdout)]
    together = json.loads(run_forked("tests/support/evaluate_uneven.py", processes=2).stdout.splitlines()[-1])
    for one, two, size in zip(alone, together, (1, 2, 3, 7, 12, 13), strict=True):
        assert one["num_images"] == two["num_images"] == size
        assert (one["top1"], one["top5"]) == (two["top1"], two["top5"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["ece"] == pytest.approx(one["ece"], abs=1e-6)
        assert one["several"] == pytest.approx(two["several"], rel=1e-6)
        assert two["several"]["num_images"] == size


class Logits(nn.Module):
    """Passes its input on."""

    def forward(self, x):
        return x


def test_metrics_are_those_of_their_definitions():
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(200, 8, generator=generator), torch.randint(8, (200,), generator=generator)
    batches = [(logits[i : i + 64], labels[i : i + 64]) for i in range(0, 200, 64)]
    found = evaluate(Logits(), batches, lambda x: x, accelerator)

    probabilities = logits.double().softmax(1)
    confidence, guess = probabilities.max(1)
    right = guess == labels
    ece = 0.0
    for k in range(15):
        inside = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        if inside.any():
            ece += inside.double().mean() * (confidence[inside].mean() - right[inside].double().mean()).abs()
    assert found["top1"] == right.double().mean()
    rank = (probabilities > probabilities[torch.arange(200), labels, None]).sum(1)
    assert found["top5"] == (rank < 5).double().mean()
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits.double(), labels).item(), rel=1e-6)
    assert found["ece"] == pytest.approx(float(ece), abs=1e-9)


def test_timms_evaluator_agrees():
    from timm.task import ClassificationEvaluator

    AcceleratorState._reset_state(reset_partial_state=True)
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)
    found = evaluate(Logits(), [(logits, labels)], lambda x: x, Accelerator(cpu=True))
    theirs = ClassificationEvaluator()
    theirs.update(logits, labels)
    theirs = theirs.compute()
    assert 100 * found["top1"] == pytest.approx(theirs["top1"])
    assert 100 * found["top5"] == pytest.approx(theirs["top5"])
    assert found["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
