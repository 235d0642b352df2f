"""Focal loss: its formula, its limits, its gradient where the label is certain, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.target import Target
from weathered.losses.focal import Focal

LOGITS = torch.randn(12, 5, generator=generator(0, "focal"), dtype=torch.float64)
LABELS = torch.arange(12) % 5


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_formula_and_limit(gamma):
    p = LOGITS.softmax(1)[torch.arange(12), LABELS]
    assert_close(Focal(gamma)(LOGITS, LABELS), -((1 - p) ** gamma) * p.log(), rtol=1e-10, atol=1e-12)


def test_no_focus_is_cross_entropy_and_more_focus_never_costs_more():
    expected = F.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.equal(Focal(0.0)(LOGITS, LABELS), expected)
    low, high = Focal(1.0)(LOGITS, LABELS), Focal(4.0)(LOGITS, LABELS)
    assert (high < low).all()
    assert (low < expected).all()


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_gradients_are_right_and_finite_where_the_label_is_certain(gamma, scale):
    z = (scale * F.one_hot(LABELS, 5)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(Focal(gamma)(z, LABELS).sum(), z)
    assert gradient.isfinite().all()
    assert torch.autograd.gradcheck(lambda x: Focal(gamma)(x, LABELS), (LOGITS.clone().requires_grad_(),))


def test_mixtures_are_summed_over_their_labels():
    mixed = Target.hard(LABELS).mix(torch.arange(12).roll(1), torch.tensor(0.3))
    expected = 0.3 * Focal()(LOGITS, LABELS) + 0.7 * Focal()(LOGITS, LABELS.roll(1))
    assert_close(losses_of(Focal(), LOGITS, mixed), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [-1.0, 0.5, float("nan"), float("inf")])
def test_bad_gamma(gamma):
    with pytest.raises(ValueError, match="gamma must be 0, or >= 1 and finite"):
        Focal(gamma)
