"""Unrolled learning: step sizes, and gradients through steps against formulas and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.distil.unrolled import StepSizes, raw_step, unroll


@given(st.floats(1e-6, 1e3))
def test_raw_steps_come_back_through_softplus(size):
    assert float(F.softplus(torch.tensor(raw_step(size), dtype=torch.float64))) == pytest.approx(size, rel=1e-6)
    if size < 20:
        assert raw_step(size) == pytest.approx(math.log(math.exp(size) - 1), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [0.0, -1.0, math.inf, math.nan])
def test_step_sizes_must_be_positive(size):
    with pytest.raises(ValueError, match=r"step size must be in \(0, infinity\)"):
        raw_step(size)


def test_step_sizes_stay_positive_whatever_is_learned():
    steps = StepSizes(4, 0.02)
    assert_close(steps(), torch.full((4,), 0.02))
    optimizer = torch.optim.SGD(steps.parameters(), 1.0)
    for _ in range(30):
        steps().sum().backward()
        optimizer.step()
    assert bool((steps() > 0).all())
    assert float(steps().detach().max()) < 1e-3


def test_one_step_of_a_linear_softmax_model_has_the_slope_of_the_formula():
    """W' = W - a (P - Y)' d / N and L = CE(W' x): the slopes of L by a and by d, derived by hand."""
    rng = torch.Generator().manual_seed(0)
    network = nn.Linear(4, 3, bias=False).double()
    start = {"weight": torch.randn(3, 4, generator=rng, dtype=torch.float64)}
    d = torch.randn(1, 5, 4, generator=rng, dtype=torch.float64).requires_grad_()
    labels, steps = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(7, 4, generator=rng, dtype=torch.float64), torch.arange(7) % 3
    weights = unroll(network, start, d, labels, steps)
    slopes = torch.autograd.grad(F.cross_entropy(x @ weights["weight"].T, y), [steps, d])

    w, batch, a, n = start["weight"], d.detach()[0], 0.3, 5
    p, target = (batch @ w.T).softmax(1), F.one_hot(labels, 3).double()
    inner = (p - target).T @ batch / n
    assert_close(weights["weight"].detach(), w - a * inner)
    outer = ((x @ (w - a * inner).T).softmax(1) - F.one_hot(y, 3)).T @ x / 7
    assert_close(slopes[0], -(outer * inner).sum()[None])
    by_hand = torch.zeros_like(batch)
    for row in range(n):
        # the residual of the row acts directly, and its softmax moves with d through W
        jacobian = torch.diag(p[row]) - torch.outer(p[row], p[row])
        by_hand[row] = -a / n * (outer.T @ (p[row] - target[row]) + w.T @ jacobian @ outer @ batch[row])
    assert_close(slopes[1][0], by_hand)


def test_slopes_through_several_steps_are_those_of_finite_differences():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 2)).double()
    start = {name: value.detach() for name, value in network.named_parameters()}
    x, y = torch.rand(6, 1, 2, 2, dtype=torch.float64), torch.arange(6) % 2
    batches = torch.rand(2, 3, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def outer(batches: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        weights = unroll(network, start, batches, torch.tensor([0, 1, 0]), F.softplus(raw))
        return F.cross_entropy(torch.func.functional_call(network, weights, (x,)), y)

    assert torch.autograd.gradcheck(outer, (batches, raw), rtol=1e-4, atol=1e-7)


def test_steps_go_over_the_batches_in_turn_and_leave_the_network_alone():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    kept = {name: value.detach().clone() for name, value in network.named_parameters()}
    batches, labels = torch.rand(2, 4, 3), torch.tensor([0, 1, 0, 1])
    steps = torch.tensor([0.1, 0.2, 0.3])
    found = unroll(network, kept, batches, labels, steps, create_graph=False)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(kept)
    for number, size in enumerate(steps.tolist()):
        twin.zero_grad()
        F.cross_entropy(twin(batches[number % 2]), labels).backward()
        torch.optim.SGD(twin.parameters(), size).step()
    assert_close(found, dict(twin.state_dict()))
    assert not any(value.requires_grad for value in found.values())
    assert all(torch.equal(value, kept[name]) and value.grad is None for name, value in network.named_parameters())
    assert_close(unroll(network, kept, batches, labels, torch.zeros(3), create_graph=False), kept)
