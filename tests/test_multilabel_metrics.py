"""The metrics of any number of classes per image are those of scikit-learn, in whatever order the images come."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.nn import functional as F

from affnorm_zoo.evaluation import MULTILABEL, evaluate


class Logits(nn.Module):
    """Passes its input on."""

    def forward(self, x):
        return x


def measure(logits, labels, batch_size=64):
    AcceleratorState._reset_state(reset_partial_state=True)
    pairs = zip(logits.split(batch_size), labels.split(batch_size), strict=True)
    return evaluate(Logits(), list(pairs), lambda x: x, Accelerator(cpu=True), task=MULTILABEL)


@pytest.fixture
def scored():
    """Logits with ties, and labels of which the last class has none."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(150, 7, generator=generator).mul(4).round() / 2
    labels = (torch.rand(150, 7, generator=generator) < 0.3).float()
    labels[:, -1] = 0
    return logits, labels


def test_they_are_scikit_learns(scored):
    logits, labels = scored
    found = measure(logits, labels)
    precisions = average_precision_score(labels[:, :-1], logits[:, :-1], average=None)
    assert found["map"] == pytest.approx(precisions.mean(), rel=1e-12)
    guesses = (logits.sigmoid() >= 0.5).float()
    for average in ("micro", "macro"):
        expected = f1_score(labels, guesses, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected, rel=1e-12)
    assert found["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels).item(), rel=1e-6)
    assert (found["num_unseen_classes"], found["num_images"]) == (1, 150)


def test_neither_order_nor_batches_matter(scored):
    logits, labels = scored
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    # ties stand in another order, so that sums round differently
    assert measure(logits[order], labels[order], batch_size=7) == pytest.approx(measure(logits, labels), rel=1e-6)


def test_a_monotone_map_of_the_logits_keeps_the_ranking(scored):
    logits, labels = scored
    assert measure(3 * logits - 1, labels)["map"] == measure(logits, labels)["map"]


def test_perfect_logits_score_one_and_opposite_ones_least(scored):
    _, labels = scored
    perfect, worst = measure(2 * labels - 1, labels), measure(1 - 2 * labels, labels)
    assert perfect["map"] == pytest.approx(1, rel=1e-12)
    assert perfect["micro_f1"] == 1
    assert perfect["macro_f1"] == pytest.approx(6 / 7)  # a class that is not there counts as a miss
    assert worst["micro_f1"] == 0
    assert worst["map"] == pytest.approx(labels[:, :-1].mean().item(), rel=1e-6)


def test_labels_take_the_numbers_of_the_models_outputs():
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    outputs = torch.tensor([2, 0, 1])  # the output of each class
    renumbered = MULTILABEL.renumber(labels, outputs)
    for number, output in enumerate(outputs):
        assert renumbered[:, output].equal(labels[:, number])
