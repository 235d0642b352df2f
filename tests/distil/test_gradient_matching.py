"""Gradient matching: the distance of gradients, gradients of classes, and what a perfect set costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.distil.gradient_matching import by_class, class_gradients, gradient_distances, loops_for, matching_loss
from weathered.nn.build import build_model


def gradients(seed: int, classes: int = 3) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"linear": (5, 7), "bias": (5,), "convolution": (4, 2, 3, 3)}
    return {name: torch.randn(classes, *shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}


@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_the_distance_is_nothing_for_multiples_and_two_for_each_row_of_opposites(seed, factor):
    g = gradients(seed)
    assert_close(
        gradient_distances(g, {k: factor * v for k, v in g.items()}), torch.zeros(3).double(), atol=1e-3, rtol=0
    )
    opposite = gradient_distances(g, {k: -v for k, v in g.items()})
    assert_close(opposite, torch.full((3,), 2.0 * 9).double(), atol=1e-3, rtol=0)


@given(st.integers(0, 10**6))
def test_the_distance_is_a_sum_over_rows_of_one_minus_cosine_and_leaves_biases_out(seed):
    g, h = gradients(seed), gradients(seed + 1)
    for number, found in enumerate(gradient_distances(g, h).tolist()):
        rows = [
            (g[n][number, r].flatten(), h[n][number, r].flatten())
            for n in ("linear", "convolution")
            for r in range(len(g[n][number]))
        ]
        assert found == pytest.approx(sum(1 - float(F.cosine_similarity(a, b, dim=0)) for a, b in rows), abs=1e-5)
    scaled = {
        name: value * torch.rand(value.shape[:2]).add(0.1).view(*value.shape[:2], *[1] * (value.ndim - 2))
        for name, value in g.items()
    }
    assert_close(gradient_distances(scaled, h), gradient_distances(g, h), atol=1e-4, rtol=0)
    order = torch.tensor([2, 0, 1])
    permuted = gradient_distances(*({k: v[order] for k, v in side.items()} for side in (g, h)))
    assert_close(permuted, gradient_distances(g, h)[order])
    assert_close(permuted.sum(), gradient_distances(g, h).sum())


def test_rows_without_gradient_on_both_sides_count_one_and_have_a_finite_slope():
    g = {"w": torch.zeros(1, 4, 3, requires_grad=True)}
    distance = gradient_distances(g, {"w": torch.zeros(1, 4, 3)})
    assert distance.tolist() == [4.0]
    (slope,) = torch.autograd.grad(gradient_distances(g, {"w": torch.ones(1, 4, 3)}).sum(), g["w"])
    assert bool(slope.isfinite().all())


def test_gradients_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="same names and shapes"):
        gradient_distances({"w": torch.ones(1, 2, 3)}, {"w": torch.ones(1, 3, 2)})
    with pytest.raises(ValueError, match="no gradient of a weight"):
        gradient_distances({"b": torch.ones(1, 2)}, {"b": torch.ones(1, 2)})


def test_gradients_of_classes_are_those_of_each_mean_loss_alone(small_digits):
    for spec in ("mlp:width=12", "cnn_small:width=8"):
        network = build_model(spec, small_digits).eval()
        x, y = small_digits.floats(torch.arange(120)), small_digits.labels[:120] % 4
        present, images, weights = by_class(x, y, 5)
        assert present.tolist() == [True] * 4 + [False]
        found = class_gradients(network, images, torch.arange(5)[present], weights)
        for label in range(4):
            loss = F.cross_entropy(network(x[y == label]), y[y == label])
            for (name, _), slope in zip(
                network.named_parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True
            ):
                assert_close(found[name][label], slope, atol=1e-5, rtol=1e-3)
        assert all(parameter.grad is None for parameter in network.parameters())


def test_no_more_than_256_images_of_a_class_are_taken():
    _, images, weights = by_class(torch.rand(400, 1, 2, 2), (torch.arange(400) == 0).long(), 2)
    assert images.shape[:2] == (2, 256)
    assert weights[0].tolist() == [1 / 256] * 256
    assert weights[1].tolist() == [1.0] + [0.0] * 255


def test_images_that_are_the_whole_real_class_cost_nothing_but_one_for_each_dead_row():
    """One of the units is dead: its row in the first layer has no gradient on either side."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 5), nn.Linear(5, 3)
    with torch.no_grad():
        first.weight.mul_(1e-3)
        first.bias.fill_(5.0)
        first.bias[2] = -1e3
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    real = 1000 * torch.rand(3, 4, 1, 2, 3)  # large gradients, beside which 1e-6 is nothing
    rows, labels = torch.randperm(12), torch.arange(3).repeat_interleave(4)
    loss = matching_loss(network, real.clone(), real.flatten(0, 1)[rows], labels[rows])
    assert float(loss.detach()) == pytest.approx(3.0, abs=1e-4)


def test_gradient_flows_to_the_synthetic_images_alone_and_lowers_the_loss(small_digits):
    network = build_model("cnn_small:width=8", small_digits).eval()
    x, y = small_digits.floats(torch.arange(100)), small_digits.labels[:100]
    x.requires_grad_()
    synthetic = torch.rand(10, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = matching_loss(network, synthetic, x, y)
    (slope,) = torch.autograd.grad(before, synthetic, retain_graph=True)
    assert torch.autograd.grad(before, x, allow_unused=True) == (None,)
    moved = synthetic.detach() - 0.05 * slope / slope.norm() * synthetic.detach().norm()
    assert float(matching_loss(network, moved, x.detach(), y).detach()) < float(before.detach())


def test_the_slope_of_the_loss_is_that_of_finite_differences():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.rand(10, 1, 2, 2, dtype=torch.float64), torch.arange(10) % 2
    synthetic = torch.rand(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: matching_loss(network, s, x, y), synthetic, rtol=1e-4, atol=1e-7)


def test_loops_are_those_of_the_authors_or_must_be_given():
    assert [loops_for(size, None, None) for size in (1, 10, 50)] == [(1, 1), (10, 50), (50, 10)]
    assert loops_for(10, 3, None) == (3, 50)
    assert loops_for(5, 5, 10) == (5, 10)
    for given_loops in ((None, None), (5, None), (None, 5)):
        with pytest.raises(ValueError, match="outer and inner must be given for images_per_class=5"):
            loops_for(5, *given_loops)
    with pytest.raises(ValueError, match=r"inner must be in \[1, infinity\), got 0"):
        loops_for(5, 1, 0)
