"""Logit adjustment: its limits, what it balances, and how it meets other losses and shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.target import Target
from weathered.losses.base import log_prior
from weathered.losses.gce import GeneralizedCrossEntropy
from weathered.losses.logit_adjustment import LogitAdjustment

COUNTS = [500, 100, 30, 5]
PI = torch.tensor(COUNTS).double() / sum(COUNTS)


def drawn(rows: int = 12, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, 4, generator=generator(0, "logits"), dtype=dtype)


LABELS = torch.arange(12) % 4


def test_tau_zero_and_equal_counts_are_cross_entropy():
    expected = F.cross_entropy(drawn(), LABELS, reduction="none")
    assert_close(LogitAdjustment(COUNTS, tau=0.0)(drawn(), LABELS), expected, atol=1e-12, rtol=0)
    assert_close(LogitAdjustment([7] * 4, tau=2.0)(drawn(), LABELS), expected, atol=1e-12, rtol=0)


def test_tau_one_is_the_balanced_softmax():
    n = torch.tensor(COUNTS).double()
    z = drawn()
    expected = -(n * z.exp()).div((n * z.exp()).sum(1, keepdim=True))[torch.arange(12), LABELS].log()
    assert_close(LogitAdjustment(COUNTS)(z, LABELS), expected, atol=1e-12, rtol=0)


def test_a_model_that_knows_nothing_predicts_the_prior_and_is_at_rest_on_it():
    z = torch.zeros(sum(COUNTS), 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    loss = LogitAdjustment(COUNTS)
    assert_close(loss.transform_logits(z[:1]).softmax(1)[0], PI)
    (gradient,) = torch.autograd.grad(loss(z, labels).mean(), z)
    assert_close(gradient.sum(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


@given(st.integers(1, 1000))
def test_only_ratios_of_counts_matter(factor):
    loss, scaled = LogitAdjustment(COUNTS), LogitAdjustment([factor * n for n in COUNTS])
    assert_close(scaled(drawn(), LABELS), loss(drawn(), LABELS), atol=1e-12, rtol=0)


def test_a_base_a_mixture_and_a_map_of_pixels_are_given_shifted_logits():
    z, tau = drawn(), 0.5
    shifted = z + tau * log_prior(COUNTS)
    base = GeneralizedCrossEntropy(0.7)
    assert_close(LogitAdjustment(COUNTS, tau, base)(z, LABELS), base(shifted, LABELS))
    mixed = Target.hard(LABELS).mix(torch.arange(12).roll(1), torch.tensor(0.3))
    expected = F.cross_entropy(shifted, mixed.dense(4).double(), reduction="none")
    assert_close(losses_of(LogitAdjustment(COUNTS, tau), z, mixed), expected, rtol=1e-6, atol=1e-6)
    pixels, names = z.view(3, 4, 2, 2), torch.arange(12).view(3, 2, 2) % 4
    flat = LogitAdjustment(COUNTS)(pixels.movedim(1, -1).reshape(-1, 4), names.flatten())
    assert_close(LogitAdjustment(COUNTS)(pixels, names).flatten(), flat)


def test_half_precision_is_computed_in_single():
    z = drawn(dtype=torch.float16)
    losses = LogitAdjustment(COUNTS)(z, LABELS)
    assert losses.dtype == torch.float32
    assert_close(losses, LogitAdjustment(COUNTS)(z.float(), LABELS), atol=1e-6, rtol=0)


def test_predictions_are_those_of_the_raw_logits():
    assert torch.equal(LogitAdjustment(COUNTS).test_logits(drawn()), drawn())


def test_bad_inputs():
    with pytest.raises(ValueError, match="class 1 has 0; drop the class or add samples"):
        LogitAdjustment([5, 0, 3])
    for tau in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tau must be >= 0 and finite"):
            LogitAdjustment(COUNTS, tau)
    with pytest.raises(ValueError, match=r"logits must be \(B, 4\), one for each class count, got \(2, 3\)"):
        LogitAdjustment(COUNTS)(torch.zeros(2, 3), torch.zeros(2).long())
