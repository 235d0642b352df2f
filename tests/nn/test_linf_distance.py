"""Distances to weight vectors: closed forms, exact gradients, bounds over boxes, and what is held at once."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.nn import linf_distance
from weathered.nn.linf_distance import LinfDistance, distance_bounds, lp_distance

INF = math.inf
EXPONENTS = (1.0, 2.0, 3.7, 8.0, 50.0, INF)


def drawn(batch: int, units: int, width: int, seed: int = 0, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(size, width, generator=rng, dtype=dtype) for size in (batch, units))
    return x, weight


def gradients(x, weight, p, upstream=None):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    value = lp_distance(x, weight, p)
    return torch.autograd.grad(value, (x, weight), torch.ones_like(value) if upstream is None else upstream)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("width", [1, 5, 64, 100, 257])
@pytest.mark.parametrize("tile", [1, 300, 2**17])
def test_it_is_the_distance_of_torch_with_its_gradients_however_it_is_cut(p, width, tile, monkeypatch):
    monkeypatch.setattr(linf_distance, "TILE", tile)
    x, weight = drawn(6, 7, width)
    upstream = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    # in float32 the powers of torch.cdist underflow at p = 50
    a, b = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = torch.cdist(a, b, p)
    for found in (lp_distance(x, weight, p), lp_distance(x.clone().requires_grad_(), weight, p).detach()):
        assert_close(found.double(), expected.detach(), rtol=1e-4, atol=1e-6)
    theirs = torch.autograd.grad(expected, (a, b), upstream.double())
    for mine, peer in zip(gradients(x, weight, p, upstream), theirs, strict=True):
        assert_close(mine.double(), peer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("p", [1.5, 3.0, 8.0, INF])
def test_gradients_are_those_of_small_changes(p):
    x, weight = (side.requires_grad_() for side in drawn(3, 4, 70, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: lp_distance(a, b, p), (x, weight))


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(1, 300), st.floats(1, 300))
def test_it_falls_with_p_down_to_the_largest_difference(seed, width, one, other):
    x, weight = drawn(3, 4, width, seed, torch.float64)
    low, high = sorted((one, other))
    largest, small, large = (lp_distance(x, weight, p) for p in (INF, low, high))
    slack = 1 + 1e-9
    assert bool((large <= small * slack).all())
    assert bool((largest <= large * slack).all())
    assert bool((small <= width ** (1 / low) * largest * slack).all())


def test_at_a_thousand_the_norm_of_5120_equal_differences_is_nine_thousandths_too_large():
    ratio = lp_distance(torch.ones(1, 5120), torch.zeros(1, 5120), 1000.0)
    assert float(ratio) == pytest.approx(5120 ** (1 / 1000), rel=1e-5)
    assert float(ratio) - 1 == pytest.approx(0.009, abs=0.0005)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 8.0, 60.0, 1000.0])
def test_the_gradient_of_finite_p_has_dual_norm_one(p):
    x, weight = drawn(1, 5, 40)
    for unit in range(5):
        (of_x, of_weight) = gradients(x, weight[unit : unit + 1], p)
        norm = of_x.abs().amax() if p == 1 else (of_x.abs() ** (p / (p - 1))).sum()
        assert float(norm) == pytest.approx(1, abs=1e-4)
        assert torch.equal(of_weight, -of_x)


@pytest.mark.parametrize("width", [3, 64, 200])
def test_the_gradient_at_infinity_has_one_entry_also_where_several_are_largest(width):
    x, weight = drawn(1, 1, width)
    tied = x + torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0)
    apart = torch.round(tied * 8) / 8, torch.round(x * 8) / 8
    steps = torch.zeros(1, width)
    steps[0, width // 2] = -9.0
    for a, b in ((x, weight), apart, (x + 2.5, x), (x, x + steps)):
        (of_x, of_weight) = gradients(a, b, INF)
        (place,) = of_x[0].nonzero().T
        assert len(place) == 1
        difference = (a - b)[0]
        assert float(of_x[0, place]) == float(difference[place].sign())
        assert float(difference[place].abs()) == float(difference.abs().max())
        assert torch.equal(of_weight, -of_x)


@pytest.mark.parametrize("p", EXPONENTS)
def test_a_common_shift_changes_nothing_and_a_scale_scales(p):
    x, weight = drawn(4, 3, 20, dtype=torch.float64)
    before = lp_distance(x, weight, p)
    assert_close(lp_distance(x + 3.25, weight + 3.25, p), before)
    for scale in (0.5, -2.0, 1e3):
        assert_close(lp_distance(x * scale, weight * scale, p), abs(scale) * before)


@pytest.mark.parametrize("p", EXPONENTS)
def test_an_input_on_its_weight_vector_has_distance_0_and_finite_gradients(p):
    x, _ = drawn(2, 1, 100)
    value = lp_distance(x, x.clone(), p)
    assert value.diagonal().tolist() == [0.0, 0.0]
    assert all(bool(torch.isfinite(found).all()) for found in gradients(x, x, p))


@pytest.mark.parametrize("p", [8.0, INF])
def test_extreme_sizes_neither_overflow_nor_vanish_and_nan_is_seen(p):
    for size in (1e-6, 1e12):
        x = torch.full((1, 9), size)
        assert_close(lp_distance(x, torch.zeros(1, 9), p), torch.tensor([[size * 9 ** (1 / p)]]), rtol=1e-4, atol=0)
    x = torch.ones(1, 9)
    x[0, 4] = torch.nan
    assert bool(lp_distance(x, torch.zeros(1, 9), p).isnan())
    assert bool(lp_distance(x.requires_grad_(), torch.zeros(1, 9), p).isnan())


@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 400), st.integers(1, 500))
def test_tiles_cover_each_pair_once_and_hold_no_more_than_they_may(rows, units, width, tile):
    seen = torch.zeros(rows, units)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linf_distance, "TILE", tile)
        for part in linf_distance._tiles(rows, units, width):
            seen[part] += 1
            assert seen[part].numel() * width <= max(tile, width)
    assert bool((seen == 1).all())


def test_wrong_arguments_are_refused():
    x, weight = drawn(2, 3, 4)
    for p in (0.99, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"p must be in \[1, infinity\], got"):
            lp_distance(x, weight, p)
    for wrong in (weight[:, :3], weight[0], weight[:, :0]):
        with pytest.raises(ValueError, match=r"x and weight must be \(B, D\) and \(K, D\)"):
            lp_distance(x, wrong)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        LinfDistance(0, 3)


def test_bounds_over_a_box_are_reached_and_never_passed():
    x, weight = drawn(5, 6, 30)
    half = 0.4 * torch.rand(5, 30, generator=torch.Generator().manual_seed(2))
    least, most = distance_bounds(x - half, x + half, weight)
    for row in range(5):
        lower, upper = x[row] - half[row], x[row] + half[row]
        nearest = torch.clamp(weight, lower, upper)
        farthest = torch.where(weight > x[row], lower, upper)
        assert_close((nearest - weight).abs().amax(1), least[row], rtol=0, atol=1e-6)
        assert_close((farthest - weight).abs().amax(1), most[row], rtol=0, atol=1e-6)
    rng = torch.Generator().manual_seed(3)
    for _ in range(200):
        found = lp_distance(x + half * (2 * torch.rand(5, 30, generator=rng) - 1), weight)
        assert bool(((found >= least - 1e-6) & (found <= most + 1e-6)).all())
    assert bool((most - least <= 2 * half.amax(1, keepdim=True) + 1e-6).all())
    for end in distance_bounds(x, x, weight):
        assert_close(end, lp_distance(x, weight), rtol=0, atol=0)


def test_in_training_the_batch_mean_is_subtracted_and_gradients_know_it():
    layer, (x, _) = LinfDistance(12, 5), drawn(8, 1, 12)
    layer.p.fill_(4.0)
    x.requires_grad_()
    out = layer(x)
    distance = torch.cdist(x.detach(), layer.weight.detach(), 4.0)
    assert_close(out.detach(), distance - distance.mean(0), rtol=1e-4, atol=1e-5)
    assert_close(layer.running_mean, 0.1 * distance.mean(0), rtol=1e-4, atol=1e-6)
    # the sum over the batch is 0 whatever x and the weights are
    for found in torch.autograd.grad(out.sum(), (x, layer.weight), retain_graph=True):
        assert float(found.abs().max()) < 1e-5
    assert float(torch.autograd.grad(out[0].sum(), x)[0].abs().max()) > 0.1


def test_in_evaluation_the_exponent_is_infinity_and_the_running_mean_is_subtracted():
    layer, (x, _) = LinfDistance(12, 5), drawn(8, 1, 12)
    layer.p.fill_(4.0)
    layer.running_mean.copy_(torch.arange(5.0))
    with torch.no_grad():
        found = layer.eval()(x)
        assert_close(found, torch.cdist(x, layer.weight, INF) - torch.arange(5.0))
    assert layer.running_mean.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert float(layer.state_dict()["p"]) == 4.0


def test_the_last_layer_has_a_bias_and_no_mean():
    layer, (x, _) = LinfDistance(12, 5, mean_shift=False), drawn(8, 1, 12)
    assert layer.bias is not None
    assert layer.bias.tolist() == [0.0] * 5
    with torch.no_grad():
        layer.bias.copy_(torch.arange(5.0))
        assert_close(layer(x), torch.cdist(x, layer.weight, INF) + torch.arange(5.0))
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert {name for name, _ in LinfDistance(12, 5).named_parameters()} == {"weight"}


@pytest.mark.parametrize(("inputs", "units"), [(6, 6), (6, 15)])
def test_units_start_as_copies_of_inputs_plus_ten(inputs, units):
    layer = LinfDistance(inputs, units).eval()
    x = 2 * torch.rand(50, inputs, generator=torch.Generator().manual_seed(0)) - 1
    rest = layer.weight.detach().clone()
    rest[torch.arange(units), torch.arange(units) % inputs] = 0
    assert float(rest.abs().max()) < 7.9, "draw weights whose normal part cannot win"
    with torch.no_grad():
        assert_close(layer(x), x[:, torch.arange(units) % inputs] + 10)


def test_fewer_units_than_inputs_start_without_copies_and_redrawing_resets():
    layer = LinfDistance(40, 30)
    assert float(layer.weight.detach().min()) > -9
    assert abs(float(layer.weight.detach().std()) - 1) < 0.1
    before = layer.weight.detach().clone()
    layer.running_mean.fill_(3.0)
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)
    assert layer.running_mean.tolist() == [0.0] * 30
