"""The attack of TRADES: where it ends on a linear network, what bounds it, and what it leaves alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.attacks.trades import SPREAD, climb_divergence, divergence, trades_attack


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> nn.Sequential:
    """Batch normalisation and dropout, of which the attack must see the evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def test_divergence_has_its_closed_form():
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]])
    q = torch.tensor([[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    found = divergence(p.log() + 2.0, q.log() - 1.0)
    assert_close(found, torch.tensor([0.25 * math.log(2.0), 0.0]), atol=1e-6, rtol=0)
    far = divergence(torch.tensor([[0.0, -1000.0]]), torch.tensor([[-1000.0, 0.0]]))
    assert_close(far, torch.tensor([1000.0]))


def test_gradient_of_the_divergence_reaches_both_sides():
    z, w = (torch.randn(5, 4, generator=rng(seed), requires_grad=True) for seed in (1, 2))
    found = torch.autograd.grad(divergence(z, w).sum(), [z, w])
    p, q = z.detach().softmax(1), w.detach().softmax(1)
    gap = (p / q).log()
    assert_close(found[0], p * (gap - (p * gap).sum(1, keepdim=True)), atol=1e-6, rtol=0)
    assert_close(found[1], q - p, atol=1e-6, rtol=0)


def test_on_a_linear_network_of_two_classes_it_ends_in_a_corner():
    """The divergence grows with the distance of the margin from its value at x, on both sides."""
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -1.0, 1.0]])
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(weight)
    x = 0.3 + 0.4 * torch.rand(30, 4, generator=rng())
    moved = (trades_attack(model, x, rng(1)) - x) / 0.031
    side = (weight[0] - weight[1]).sign()
    assert_close(moved.abs(), torch.ones(30, 4), atol=1e-4, rtol=0)
    assert bool((moved.round() == side * moved[:, :1].round() * side[0]).all())
    assert 0 < int((moved[:, 0] > 0).sum()) < 30


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.5), st.floats(0, 0.5), st.integers(1, 4), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]))
def test_it_stays_near_and_in_the_unit_cube(epsilon, step_size, steps, seed, fill):
    x = torch.rand(8, 6, generator=rng(seed))
    x[:2] = fill
    before = x.clone()
    found = trades_attack(network(), x, rng(seed), epsilon, step_size, steps)
    assert float((found - x).abs().max()) <= epsilon + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(x, before)
    assert not found.requires_grad
    if epsilon == 0:
        assert torch.equal(found, x)


@pytest.mark.parametrize("steps", [1, 4])
def test_sign_steps_from_the_noise_climb_the_divergence_from_the_clean_prediction(steps):
    """Far from x the two directions of the divergence part, so that four long steps tell them apart."""
    # in float64 no sign hangs on rounding
    model, x = network().eval().double(), torch.rand(32, 6, generator=rng()).double()
    with torch.no_grad():
        model[4].weight.mul_(20)
    adversary, clean = x + SPREAD * torch.randn(32, 6, generator=rng(1)).double(), model(x).detach().softmax(1)
    ends = []
    for swapped in (False, True):
        position = adversary.clone()
        for _ in range(steps):
            position.requires_grad_()
            said = model(position)
            if swapped:
                climbed = F.kl_div(clean.log(), said.softmax(1), reduction="sum")
            else:
                climbed = F.kl_div(said.log_softmax(1), clean, reduction="sum")
            (gradient,) = torch.autograd.grad(climbed, position)
            position = (position.detach() + 0.2 * gradient.sign()).clamp(x - 0.6, x + 0.6).clamp(0, 1)
        ends.append(position)
    assert_close(trades_attack(model, x, rng(1), 0.6, 0.2, steps), ends[0], atol=1e-6, rtol=0)
    assert steps == 1 or not torch.equal(*ends)


def test_it_makes_the_network_say_something_else():
    model, x = network().eval(), torch.rand(64, 6, generator=rng())
    said = model(x).detach()
    noisy = (x + 0.1 * torch.randn(64, 6, generator=rng(1)).sign()).clamp(0, 1)
    attacked = trades_attack(model, x, rng(1), epsilon=0.1, step_size=0.03)
    with torch.no_grad():
        moved, shaken = (float(divergence(said, model(other)).mean()) for other in (attacked, noisy))
    assert moved > 2 * shaken


def test_modes_buffers_and_gradients_stay_as_they_were():
    model, x = network().train(), torch.rand(8, 6, generator=rng())
    model[3].eval()
    model(x).sum().backward()
    buffers = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    trades_attack(model, x, rng())
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(torch.equal(value, buffers[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_modes_return_after_an_error():
    model = network().train()
    with pytest.raises(RuntimeError):
        trades_attack(model, torch.rand(8, 5), rng())
    assert all(module.training for module in model.modules())


def test_it_works_where_gradients_are_off():
    model, x = network(), torch.rand(8, 6, generator=rng())
    expected = trades_attack(model, x, rng(1))
    with torch.no_grad():
        assert torch.equal(trades_attack(model, x, rng(1)), expected)
    assert not torch.equal(expected, trades_attack(model, x, rng(2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, r"^epsilon must be in \[0, 1\], the range of inputs, got -0.1"),
        ({"epsilon": 8.0}, "^epsilon must be in"),
        ({"step_size": math.nan}, "^step_size must be in"),
        ({"steps": 0}, "^steps must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        trades_attack(network(), torch.rand(8, 6), rng(), **arguments)


@pytest.mark.parametrize("value", [-0.5, 255.0, math.nan])
def test_inputs_outside_the_unit_range_are_refused(value):
    x = torch.rand(8, 6)
    x[3, 2] = value
    with pytest.raises(ValueError, match=r"the attack needs inputs in \[0, 1\]"):
        trades_attack(network(), x, rng())


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"start must have the shape of x, \(8, 6\), got \(1, 6\)"):
        climb_divergence(network(), torch.rand(8, 6), torch.rand(1, 6))
