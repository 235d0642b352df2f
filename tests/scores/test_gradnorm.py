"""GradNorm: the closed form against automatic differentiation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.scores.gradnorm import gradnorm_score


@settings(max_examples=30)
@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 1000))
def test_equals_automatic_differentiation(classes, width, seed):
    rng = generator(seed, "h")
    layer = nn.Linear(width, classes, dtype=torch.float64)
    features = torch.randn(5, width, generator=rng, dtype=torch.float64)
    norms = []
    for h in features:
        divergence = -(layer(h).log_softmax(0) / classes).sum()  # up to the entropy of the uniform label
        norms.append(torch.autograd.grad(divergence, layer.weight)[0].abs().sum())
    assert_close(-gradnorm_score(features, layer(features)), torch.stack(norms), rtol=1e-9, atol=1e-12)


def test_float32_agrees_to_five_digits():
    rng = generator(0, "h")
    features, logits = torch.randn(20, 64, generator=rng), 5 * torch.randn(20, 10, generator=rng)
    assert_close(
        gradnorm_score(features, logits), gradnorm_score(features.double(), logits.double()), rtol=1e-5, atol=0
    )


def test_limits():
    features = torch.tensor([[1.0, -2.0, 3.0]])
    assert gradnorm_score(features, torch.full((1, 4), 9.0)).item() == pytest.approx(0, abs=1e-12)
    assert gradnorm_score(0 * features, torch.tensor([[5.0, 0, 0, 0]])).item() == 0
    assert gradnorm_score(features, torch.tensor([[900.0, 0, 0, 0]])).item() == pytest.approx(-6 * 1.5)
    assert gradnorm_score(2 * features, torch.tensor([[3.0, 1.0]])) == 2 * gradnorm_score(
        features, torch.tensor([[3.0, 1.0]])
    )


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="3 rows of features but 2 rows of logits"):
        gradnorm_score(torch.zeros(3, 2), torch.zeros(2, 2))
