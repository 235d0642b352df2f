"""Binary cross entropy of the softmax: torch's own as reference, closed forms at uniform scores, no infinities."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.objective import losses_of
from weathered.core.target import Target
from weathered.losses.softmax_binary_cross_entropy import SoftmaxBinaryCrossEntropy

LOSS = SoftmaxBinaryCrossEntropy()


def draws(classes: int = 7, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, generator=rng, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=rng)


def test_is_the_mean_binary_cross_entropy_of_the_probabilities():
    logits, labels = draws()
    target = F.one_hot(labels, 7).double()
    expected = F.binary_cross_entropy(logits.softmax(1), target, reduction="none").mean(1)
    assert_close(LOSS(logits, labels), expected)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_closed_forms_at_uniform_scores(classes):
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([1])
    loss = LOSS(logits, label)
    expected = -(math.log(1 / classes) + (classes - 1) * math.log(1 - 1 / classes)) / classes
    assert_close(float(loss.detach()), expected)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    (of_cross_entropy,) = torch.autograd.grad(F.cross_entropy(logits, label), logits)
    assert_close(gradient, of_cross_entropy / (classes - 1))


def test_values_quoted_for_ten_and_a_hundred_classes():
    found = [float(LOSS(torch.zeros(1, classes), torch.tensor([0]))) for classes in (10, 100)]
    assert found == pytest.approx([0.3251, 0.0560], abs=5e-5)


def test_mixed_losses_are_losses_of_mixed_targets():
    logits, labels = draws()
    partner, lam = torch.arange(16).flip(0), torch.linspace(0, 1, 16, dtype=torch.float64)
    mixed = losses_of(LOSS, logits, Target.hard(labels).mix(partner, lam))
    dense = lam[:, None] * F.one_hot(labels, 7) + (1 - lam[:, None]) * F.one_hot(labels[partner], 7)
    expected = F.binary_cross_entropy(logits.softmax(1), dense, reduction="none").mean(1)
    assert_close(mixed, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_certain_scores_stay_finite_with_their_gradient(dtype):
    logits = torch.tensor([[80.0, 0.0, -80.0], [0.0, 90.0, 0.0], [40.0, 40.0, -90.0]], dtype=dtype, requires_grad=True)
    loss = LOSS(logits, torch.tensor([2, 1, 0]))
    assert bool(loss.isfinite().all())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(gradient.isfinite().all())
    # wrong for certain: -(log p_y + log(1 - p_top)) / 3
    assert float(loss[0].detach()) == pytest.approx((160 + 80) / 3, rel=1e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="C >= 2"):
        LOSS(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels"):
        LOSS(torch.zeros(2, 3), torch.tensor([0, 3]))
