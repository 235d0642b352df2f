"""SmoothMix: the attack, the projection, the mixed target and its divergence."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.procedures.smoothmix import (
    mean_probability,
    mix_divergence,
    mixed_target,
    noisy_copies,
    project,
    smooth_attack,
)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(seed: int = 0) -> torch.Tensor:
    return torch.rand(10, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("step_size", [0.1, 0.7])
def test_attack_steps_are_short_and_stay_inside(step_size, max_norm):
    x, labels, noise = points(), torch.arange(10) % 4, 0.3 * draws(2, 10, 3, 4)
    path = smooth_attack(small_network(), x, labels, noise, 5, step_size, max_norm)
    assert len(path) == 6
    assert torch.equal(path[0], x)
    for number, (before, after) in enumerate(pairwise(path), 1):
        assert not after.requires_grad
        assert (after >= 0).all()
        assert (after <= 1).all()
        distance = (after - x).flatten(1).norm(dim=1)
        assert (distance <= min(step_size * number, max_norm or math.inf) + 1e-9).all()
        if max_norm is None:
            assert ((after - before).flatten(1).norm(dim=1) <= step_size + 1e-9).all()
    assert not torch.equal(path[-1], x)


def test_attack_lowers_the_mean_probability_of_the_label():
    model, x, labels, noise = small_network(), points(), torch.arange(10) % 4, 0.3 * draws(2, 10, 3, 4)
    end = smooth_attack(model, x, labels, noise, 8, 0.1)[-1]
    before, after = (mean_probability(model(noisy_copies(place, noise)), 2) for place in (x, end))
    assert (after.gather(1, labels[:, None]) < before.gather(1, labels[:, None])).all()


def test_attack_on_a_linear_classifier_goes_along_its_normal():
    direction = torch.tensor([3.0, -4.0], dtype=torch.float64)

    def classifier(x: torch.Tensor) -> torch.Tensor:
        score = x @ direction
        return torch.stack([score, torch.zeros_like(score)], 1)

    x = torch.full((2, 2), 0.5, dtype=torch.float64)
    end = smooth_attack(classifier, x, torch.tensor([0, 1]), draws(3, 2, 2), 2, 0.1)[-1]
    assert_close(end - x, torch.tensor([[-0.12, 0.16], [0.12, -0.16]], dtype=torch.float64), atol=1e-6, rtol=0)


def test_attack_follows_the_logarithm_of_the_mean_softmax():
    """Two noises pull in different directions; the mean of log-softmaxes would weigh them otherwise."""
    weights = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    noise = torch.tensor([[[4.0, 0.0]], [[-4.0, 1.0]]], dtype=torch.float64)
    z = x.clone().requires_grad_()
    loss = -((z + noise[:, 0]) @ weights.T).softmax(1)[:, 0].mean().log()
    gradient = torch.autograd.grad(loss, z)[0]
    end = smooth_attack(lambda inputs: inputs @ weights.T, x, torch.tensor([0]), noise, 1, 0.01)[1]
    assert_close(end, x + 0.01 * gradient / gradient.norm(), atol=1e-6, rtol=0)


def test_attack_leaves_no_gradient_in_the_network_and_the_input_as_it_was():
    model, x = small_network(), points()
    before = x.clone()
    smooth_attack(model, x, torch.arange(10) % 4, draws(2, 10, 3, 4), 2, 0.1)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_projection_is_the_nearest_point_of_the_ball():
    centre = points()
    x = centre + draws(10, 3, 4)
    near = project(x, centre, 0.5)
    offset, moved = (x - centre).flatten(1), (near - centre).flatten(1)
    assert_close(moved.norm(dim=1), offset.norm(dim=1).clamp_max(0.5))
    assert_close(F.cosine_similarity(offset, moved), torch.ones(10, dtype=torch.float64))
    assert torch.equal(project(x, centre, 0.0), centre)
    assert torch.equal(project(centre, centre, 0.5), centre)


def test_mixed_target_is_a_distribution_above_the_uniform_floor():
    probability, lam = draws(10, 4).softmax(1), torch.linspace(0, 0.5, 10, dtype=torch.float64)
    target = mixed_target(probability, lam)
    assert_close(target.sum(1), torch.ones(10, dtype=torch.float64))
    assert (target >= lam[:, None] / 4 - 1e-15).all()
    assert torch.equal(target[0], probability[0])


def test_divergence_is_torchs_and_never_negative():
    target, logits = mixed_target(draws(10, 4).softmax(1), torch.full((10,), 0.3).double()), draws(30, 4, seed=2)
    found = mix_divergence(target, logits)
    expected = F.kl_div(logits.log_softmax(1), target.repeat(3, 1), reduction="none").sum(1).view(3, 10)
    assert_close(found, expected)
    assert (found >= 0).all()


def test_without_a_share_the_jensen_gap_remains_and_is_zero_for_one_noise():
    logits, nothing = draws(30, 4), torch.zeros(10, dtype=torch.float64)
    assert (mix_divergence(mixed_target(mean_probability(logits, 3), nothing), logits) > 1e-3).all()
    single = logits[:10]
    gap = mix_divergence(mixed_target(mean_probability(single, 1), nothing), single)
    assert_close(gap, torch.zeros_like(gap), atol=1e-12, rtol=0)


def test_divergence_has_a_finite_gradient_where_a_probability_underflows():
    logits = torch.tensor([[0.0, -200.0]]).requires_grad_()
    target = mixed_target(mean_probability(logits, 1), torch.zeros(1))
    assert (target == 0).any()
    (gradient,) = torch.autograd.grad(mix_divergence(target, logits).sum(), logits)
    assert torch.isfinite(gradient).all()
