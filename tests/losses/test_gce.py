"""Generalised cross entropy: its limits, and that it is alpha-loss by another name."""

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
from weathered.losses.alpha_loss import AlphaLoss
from weathered.losses.cross_entropy import cross_entropy
from weathered.losses.gce import GeneralizedCrossEntropy, generalised_cross_entropy

LABELS = torch.arange(24) % 5


def logits(seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(24, 5, generator=generator(seed, "logits"), dtype=torch.float64)


def probability(z: torch.Tensor) -> torch.Tensor:
    return z.softmax(1).gather(1, LABELS[:, None])[:, 0]


@given(st.floats(1e-6, 1), st.integers(0, 50))
def test_is_the_formula_and_bounded(q, seed):
    z = logits(seed)
    losses = GeneralizedCrossEntropy(q)(z, LABELS)
    assert_close(losses, (1 - probability(z) ** q) / q, rtol=1e-6, atol=1e-9)
    assert torch.equal(generalised_cross_entropy(z, LABELS, q), losses)
    assert (losses <= 1 / q).all()


def test_limits_are_cross_entropy_and_one_minus_the_probability():
    assert_close(GeneralizedCrossEntropy(1e-9)(logits(), LABELS), cross_entropy(logits(), LABELS), rtol=1e-6, atol=0)
    assert_close(GeneralizedCrossEntropy(1.0)(logits(), LABELS), 1 - probability(logits()))


@pytest.mark.parametrize(("q", "alpha"), [(0.7, 10 / 3), (0.5, 2.0), (0.75, 4.0), (1.0, math.inf)])
def test_is_alpha_loss(q, alpha):
    z, target = logits(), torch.rand(24, 5, generator=generator(0, "p"), dtype=torch.float64).softmax(1)
    ours, other = GeneralizedCrossEntropy(q), AlphaLoss(alpha)
    assert_close(ours(z, LABELS), other(z, LABELS), rtol=1e-15, atol=2e-16)
    assert_close(ours.soft(z, target), other.soft(z, target), rtol=1e-15, atol=2e-15)


def test_gradient_is_that_of_cross_entropy_times_a_power_of_the_probability():
    z = logits().requires_grad_()
    (gradient,) = torch.autograd.grad(GeneralizedCrossEntropy()(z, LABELS).sum(), z)
    p = z.detach().softmax(1)
    assert_close(gradient, probability(z.detach())[:, None] ** 0.7 * (p - F.one_hot(LABELS, 5)), rtol=1e-12, atol=1e-12)


def test_mixtures_and_empty_batches():
    part, z = GeneralizedCrossEntropy(), logits()
    target = Target.hard(LABELS).mix(torch.arange(24).roll(1), torch.tensor(0.3))
    expected = 0.3 * part(z, LABELS) + 0.7 * part(z, LABELS.roll(1))
    assert_close(losses_of(part, z, target), expected, rtol=1e-6, atol=1e-6)
    assert part(z[:0], LABELS[:0]).shape == (0,)


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1, math.nan])
def test_bad_q(q):
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        GeneralizedCrossEntropy(q)
    with pytest.raises(ValueError, match=r"q must be in \(0, 1\]"):
        generalised_cross_entropy(logits(), LABELS, q)


def test_it_has_its_long_name_too():
    assert entry_of("generalized-cross-entropy").slug == "gce"
