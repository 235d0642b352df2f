"""Symmetric cross entropy: its two halves, its limits, and distributions as targets."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.assemble import entry_of
from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.target import Target
from weathered.losses.cross_entropy import CrossEntropy, cross_entropy
from weathered.losses.symmetric_cross_entropy import SymmetricCrossEntropy, symmetric_cross_entropy

LABELS = torch.arange(24) % 5


def logits(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(24, 5, generator=generator(seed, "logits"), dtype=torch.float64)


def by_definition(z: torch.Tensor, target: torch.Tensor, alpha: float, beta: float, log_zero: float) -> torch.Tensor:
    """alpha H(t, p) + beta H(p, t), the logarithm of t cut off at log_zero."""
    p = z.softmax(1)
    log_t = torch.where(target > 0, target.log(), -math.inf).clamp_min(log_zero)
    return -alpha * (target * p.log()).sum(1) - beta * (p * log_t).sum(1)


@given(st.floats(0, 5), st.floats(0.01, 5), st.floats(-10, -0.1), st.integers(0, 50))
def test_is_cross_entropy_both_ways(alpha, beta, log_zero, seed):
    z, part = logits(seed), SymmetricCrossEntropy(alpha, beta, log_zero)
    expected = by_definition(z, F.one_hot(LABELS, 5).double(), alpha, beta, log_zero)
    assert_close(part(z, LABELS), expected)
    assert_close(part.soft(z, F.one_hot(LABELS, 5).double()), expected)
    assert torch.equal(symmetric_cross_entropy(z, LABELS, alpha, beta, log_zero), part(z, LABELS))
    assert (part(z, LABELS) >= 0).all()


def test_formula_of_the_released_code():
    z, onehot = logits(), F.one_hot(LABELS, 5).double()
    p = z.softmax(1)
    theirs = -0.1 * (onehot * p.clamp(1e-7, 1).log()).sum(1) - (p * onehot.clamp(1e-4, 1).log()).sum(1)
    assert_close(SymmetricCrossEntropy(log_zero=math.log(1e-4))(z, LABELS), theirs)


def test_reverse_half_is_the_scaled_absolute_error_and_bounded():
    z = 100 * logits()
    absolute = (z.softmax(1) - F.one_hot(LABELS, 5)).abs().sum(1)
    reverse = SymmetricCrossEntropy(alpha=0.0, beta=1.0)(z, LABELS)
    assert_close(reverse, 2 * absolute)
    assert (reverse <= 4).all()
    assert float(reverse.max()) > 4 - 1e-9


def test_without_the_reverse_half_it_is_cross_entropy():
    assert_close(SymmetricCrossEntropy(alpha=0.3, beta=0.0)(logits(), LABELS), 0.3 * cross_entropy(logits(), LABELS))


def test_reverse_half_summed_over_all_labels_is_constant():
    """Why symmetric noise does not move its minimiser."""
    part = SymmetricCrossEntropy(alpha=0.0, beta=1.0)
    total = sum(part(logits(), torch.full((24,), k)) for k in range(5))
    assert_close(total, torch.full((24,), 16.0).double())
    plain = sum(CrossEntropy()(logits(), torch.full((24,), k)) for k in range(5))
    assert plain.std() > 1


def test_gradient_is_exact():
    z, part = logits().requires_grad_(), SymmetricCrossEntropy()
    (gradient,) = torch.autograd.grad(part(z, LABELS).sum(), z)
    p = z.detach().softmax(1)
    p_y = p.gather(1, LABELS[:, None])
    assert_close(gradient, (0.1 + 4 * p_y) * (p - F.one_hot(LABELS, 5)))


def test_mixtures_reach_the_definition_and_not_the_sum_over_labels():
    z, part = logits(), SymmetricCrossEntropy()
    target = Target.hard(LABELS).mix(torch.arange(24).roll(1), torch.tensor(0.3))
    expected = by_definition(z, target.dense(5).double(), 0.1, 1.0, -4.0)
    assert_close(losses_of(part, z, target), expected, rtol=1e-6, atol=1e-6)
    summed = 0.3 * part(z, LABELS) + 0.7 * part(z, LABELS.roll(1))
    assert (expected - summed).abs().max() > 0.1


def test_huge_logits_stay_finite():
    z = (1e4 * logits().float()).requires_grad_()
    for losses in (SymmetricCrossEntropy()(z, LABELS), SymmetricCrossEntropy().soft(z, F.one_hot(LABELS, 5).float())):
        assert torch.isfinite(losses).all()
        assert torch.isfinite(torch.autograd.grad(losses.sum(), z)[0]).all()
    assert SymmetricCrossEntropy()(z[:0], LABELS[:0]).shape == (0,)


def test_labels_outside_are_errors_as_in_cross_entropy():
    for label in (-100, -1, 5):
        with pytest.raises(ValueError, match="labels must be in"):
            SymmetricCrossEntropy()(logits()[:1], torch.tensor([label]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha must be >= 0"),
        ({"alpha": math.inf}, "alpha must be >= 0 and finite"),
        ({"beta": math.nan}, "beta must be >= 0"),
        ({"alpha": 0.0, "beta": 0.0}, "must not both be 0"),
        ({"log_zero": 0.0}, "log_zero must be < 0"),
        ({"log_zero": -math.inf}, "log_zero must be < 0 and finite"),
        ({"log_zero": 4.0}, "log_zero must be < 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SymmetricCrossEntropy(**options)
    with pytest.raises(ValueError, match=message):
        symmetric_cross_entropy(logits(), LABELS, **options)


def test_it_has_its_short_name_too():
    assert entry_of("sce").slug == "symmetric-cross-entropy"
