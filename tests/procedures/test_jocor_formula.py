"""JoCoR: the joint loss, the selection and the schedule."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.procedures.jocor import jeffreys_divergence, jocor_losses, keep_rate, smallest


def logits(seed: int, rows: int = 20, classes: int = 5, scale: float = 3.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=rng, dtype=torch.float64)


def supervised(first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(first, labels, reduction="none") + F.cross_entropy(second, labels, reduction="none")


def joint(first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, co_lambda: float) -> torch.Tensor:
    return jocor_losses(supervised(first, second, labels), first, second, co_lambda)


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_divergence_is_the_sum_of_both_kullback_leibler_terms(scale):
    first, second = logits(1, scale=scale), logits(2, scale=scale)
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    expected = F.kl_div(log_q, log_p.exp(), reduction="none").sum(1)
    expected = expected + F.kl_div(log_p, log_q.exp(), reduction="none").sum(1)
    found = jeffreys_divergence(first, second)
    assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert (found >= 0).all()
    assert_close(jeffreys_divergence(first + 7.0, second - 3.0), found, atol=1e-10, rtol=1e-12)


def test_divergence_of_two_classes_has_its_closed_form():
    first, second = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[-2.0, 0.0]]).double()
    sigmoid = torch.tensor([1.0, -2.0]).double().sigmoid()
    assert_close(jeffreys_divergence(first, second)[0], (sigmoid[0] - sigmoid[1]) * 3.0)


def test_equal_logits_have_no_divergence_and_no_gradient_from_it():
    first = logits(1).requires_grad_()
    second = first.detach().clone().requires_grad_()
    labels = torch.arange(20) % 5
    assert_close(joint(first, second, labels, 0.7), 0.3 * 2 * F.cross_entropy(first, labels, reduction="none"))
    grads = torch.autograd.grad(jeffreys_divergence(first, second).sum(), (first, second))
    assert max(float(grad.abs().max()) for grad in grads) < 1e-7


def test_gradient_reaches_both_networks_through_both_terms():
    first, second = logits(1).requires_grad_(), logits(2).requires_grad_()
    assert torch.autograd.gradcheck(jeffreys_divergence, (first, second))


def test_swapping_the_networks_changes_nothing():
    first, second, labels = logits(1), logits(2), torch.arange(20) % 5
    one, other = joint(first, second, labels, 0.6), joint(second, first, labels, 0.6)
    assert_close(one, other, atol=1e-13, rtol=1e-13)
    assert torch.equal(smallest(one, 0.5), smallest(other, 0.5))


def test_with_weight_one_labels_do_not_matter():
    results = []
    for labels in (torch.zeros(20, dtype=torch.long), torch.arange(20) % 5):
        first, second = logits(1).requires_grad_(), logits(2).requires_grad_()
        losses = joint(first, second, labels, 1.0)
        kept = smallest(losses, 0.5)
        results.append((losses.detach(), kept, *torch.autograd.grad(losses[kept].mean(), (first, second))))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 1000))
def test_kept_rows_are_the_smallest(rows, forget_rate, seed):
    losses = torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    kept = smallest(losses, 1 - forget_rate)
    assert int(kept.sum()) == max(math.floor((1 - forget_rate) * rows + 1e-6), 1)
    if not kept.all():
        assert losses[kept].max() <= losses[~kept].min()


@pytest.mark.parametrize(
    ("rows", "rate", "count"), [(10, 1.0, 10), (10, 1 - 0.9, 1), (10, 1 - 0.7, 3), (7, 0.5, 3), (3, 0.1, 1)]
)
def test_kept_count(rows, rate, count):
    assert int(smallest(torch.arange(float(rows)), rate).sum()) == count


def test_dropped_rows_have_exactly_zero_gradient():
    first, second, labels = logits(1).requires_grad_(), logits(2).requires_grad_(), torch.arange(20) % 5
    losses = joint(first, second, labels, 0.5)
    kept = smallest(losses, 0.4)
    for grad in torch.autograd.grad(losses[kept].mean(), (first, second)):
        assert (grad[~kept] == 0).all()
        assert (grad[kept].abs().sum(1) > 0).all()


def test_schedule_is_the_authors_with_the_origin_at_zero():
    epochs, gradual, tau, exponent = 200, 10, 0.4, 2.0
    ramp = np.linspace(0, tau**exponent, gradual)
    for epoch in range(epochs):
        dropped = 1 - keep_rate(epoch / epochs, tau, (gradual - 1) / epochs, exponent)
        assert dropped == pytest.approx(ramp[epoch] if epoch < gradual else tau, abs=1e-12)


def test_schedule_never_falls():
    rates = [keep_rate(p, 0.3, 0.2, 1.0) for p in np.linspace(0, 1, 101)]
    assert rates[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    assert rates[20:] == pytest.approx([0.7] * 81)
    assert keep_rate(0.0, 0.3, 0.0, 1.0) == 0.7


def test_logits_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        jeffreys_divergence(torch.zeros(4, 3), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="C >= 2"):
        jeffreys_divergence(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="losses for logits"):
        jocor_losses(torch.zeros(3), torch.zeros(4, 2), torch.zeros(4, 2), 0.5)
