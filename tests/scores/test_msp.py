"""MSP: closed forms, range, and confident inputs that must not tie."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.scores.msp import msp_score


@given(st.integers(2, 30), st.floats(0.01, 30), st.integers(0, 1000))
def test_is_one_minus_the_largest_probability_and_in_range(classes, scale, seed):
    logits = scale * torch.randn(17, classes, generator=generator(seed, "z"), dtype=torch.float64)
    score = msp_score(logits)
    assert_close(score, 1 - logits.softmax(1).amax(1), atol=1e-12, rtol=0)
    assert bool((score >= 0).all())
    assert bool((score <= 1 - 1 / classes + 1e-15).all())


def test_two_classes_have_a_closed_form():
    gap = torch.tensor([0.0, 0.3, 2.0, 10.0], dtype=torch.float64)
    logits = torch.stack([gap, torch.zeros(4, dtype=torch.float64)], 1)
    assert_close(msp_score(logits), (1 - torch.tanh(gap / 2)) / 2, atol=1e-15, rtol=1e-6)


def test_equal_logits_give_the_largest_value():
    assert_close(msp_score(torch.full((1, 10), 3.0)), torch.tensor([0.9], dtype=torch.float64))


def test_confident_inputs_keep_their_order():
    gaps = torch.arange(20.0, 200.0, 10.0)
    logits = torch.stack([gaps, torch.zeros_like(gaps), torch.zeros_like(gaps)], 1)
    assert (logits.softmax(1).amax(1) == 1).all()  # all tie in float32
    score = msp_score(logits)
    assert bool((score.diff() < 0).all())
    assert_close(score.log(), math.log(2) - gaps.double(), atol=1e-6, rtol=0)


def test_temperature_divides_the_logits():
    logits = torch.randn(5, 4, generator=generator(0, "z"))
    assert_close(msp_score(logits, 2.0), msp_score(logits / 2))
    with pytest.raises(ValueError, match="temperature must be > 0 and finite, got 0"):
        msp_score(logits, 0)


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 0)])
def test_wrong_shapes_are_refused(logits):
    with pytest.raises(ValueError, match="logits must be floats of shape"):
        msp_score(logits)


def test_half_precision_is_widened_and_no_rows_give_no_scores():
    logits = torch.tensor([[1.0, 2.0]])
    assert_close(msp_score(logits.bfloat16()), msp_score(logits))
    assert msp_score(logits[:0]).shape == (0,)
