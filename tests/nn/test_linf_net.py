"""A network of Linf distances: 1-Lipschitz whatever its weights, one scale of inputs, exponents, rounding."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.errors import Incompatible, SpecError
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.nn.linf_distance import LinfDistance, lp_distance
from weathered.nn.linf_net import LinfHead, LinfNet, LinfNetwork, check_certifiable
from weathered.nn.network import fresh_copy, model_facts

SPEC = "linf-net:width=24,depth=3"


def colours(size: int = 60) -> Dataset:
    """Images whose channels differ much in spread: deviations of about 0.29, 0.03 and 0."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(size, 3, 5, 5, generator=rng) * torch.tensor([255.0, 26.0, 0.0])[:, None, None]
    return Dataset.of(pixels.byte(), torch.arange(size) % 3)


def network(data: Dataset | None = None, spec: str = SPEC, seed: int = 0) -> LinfNetwork:
    """With weights as wild as training may leave them."""
    made = build_model(spec, data or colours(), seed=seed)
    assert isinstance(made, LinfNetwork)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in made.distance_layers:
            layer.weight.add_(2 * torch.randn(layer.weight.shape, generator=rng))
            layer.running_mean.add_(5 * torch.randn(layer.running_mean.shape, generator=rng))
    return made


@given(st.integers(0, 10**6), st.floats(1e-3, 1.0))
def test_no_logit_changes_by_more_than_the_normalised_input(seed, size):
    made = network(seed=seed % 7).eval()
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(20, 3, 5, 5, generator=rng)
    moved = (x + size * (2 * torch.rand(x.shape, generator=rng) - 1)).clamp(0, 1)
    with torch.no_grad():
        changed = (made(x) - made(moved)).abs().amax(1)
    allowed = (x - moved).abs().flatten(1).amax(1) / made.scale
    assert bool((changed <= allowed + 1e-5 * (1 + 40)).all())


def test_the_bound_is_reached_so_that_no_smaller_one_holds():
    """All values move away from a weight vector at once; one layer, then its image in the next."""
    layer, x = LinfDistance(6, 1).eval(), torch.rand(1, 6)
    with torch.no_grad():
        away = (x - layer.weight).sign()
        assert float(layer(x + 0.25 * away) - layer(x)) == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("p", [2.0, 8.0, 100.0])
def test_a_finite_exponent_breaks_the_bound_by_the_root_of_the_width(p):
    width, zero = 5120, torch.zeros(1, 5120)
    change = lp_distance(torch.full((1, width), 0.1), zero, p) - lp_distance(zero, zero, p)
    assert float(change) == pytest.approx(0.1 * width ** (1 / p), rel=1e-4)
    assert float(change) > 0.1 * 1.08


def test_all_channels_are_divided_by_one_number():
    data = colours()
    made = network(data)
    spread = data.floats(torch.arange(60)).double().var((0, 2, 3), correction=0)[:2]
    assert made.std.numel() == 1
    assert made.scale == pytest.approx(float(spread.mean().sqrt()), rel=1e-4)
    assert_close(made.mean.flatten(), data.floats(torch.arange(60)).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="std must be one number, got 3"):
        LinfNetwork(LinfNet((3, 5, 5)), LinfHead(256, 3), torch.zeros(3), torch.ones(3))


def test_it_offers_features_and_a_head_of_its_own():
    made, x = network().eval(), torch.rand(4, 3, 5, 5)
    with torch.no_grad():
        features = made.forward_head(made.forward_features(x), pre_logits=True)
        assert features.shape == (4, 24)
        classifier = made.get_classifier()
        assert isinstance(classifier, LinfHead)
        assert torch.equal(classifier(features), made(x))
        distances = torch.cdist(features, classifier.weight, p=math.inf)
        assert_close(made(x), -distances)
    assert [(layer.in_features, layer.out_features) for layer in made.distance_layers] == [(75, 24), (24, 24), (24, 3)]
    assert {"features", "linf_distances"} <= model_facts(made)
    assert not {"linear_head", "cosine_head", "stage_features"} & model_facts(made)
    assert "linf_distances" not in model_facts(build_model("mlp", colours()))


def test_wrong_models_are_refused_with_a_way_out(wine):
    data = colours()
    with pytest.raises(SpecError, match=r"takes no cosine head.*Drop one"):
        build_model(SPEC, data, head="cosine")
    with pytest.raises(SpecError, match="width must be at least 1 and depth at least 2, got 24 and 1"):
        build_model("linf-net:width=24,depth=1", data)
    with pytest.raises(SpecError, match="needs images, but the data are a table; use --model mlp"):
        build_model(SPEC, wine)
    with pytest.raises(SpecError, match="Did you mean 'width'"):
        build_model("linf-net:widht=4", data)


def test_the_exponent_is_state_of_all_layers_and_evaluation_ignores_it():
    made, x = network(), torch.rand(6, 3, 5, 5)
    assert made.exponent == math.inf
    with torch.no_grad():
        before = made.eval()(x)
        made.exponent = 8.0
        assert torch.equal(made(x), before)
        relaxed = copy.deepcopy(made).train()(x)
        made.exponent = math.inf
        assert not torch.allclose(copy.deepcopy(made).train()(x), relaxed, atol=0.1)
    made.exponent = 8.0
    other = network(seed=1)
    other.load_state_dict(made.state_dict())
    assert other.exponent == 8.0
    other.distance_layers[0].p.fill_(math.inf)
    assert other.exponent == 8.0
    with pytest.raises(ValueError, match=r"p must be in \[1, infinity\], got 0.5"):
        made.exponent = 0.5


def test_only_a_network_of_distances_at_infinity_can_be_certified():
    made = network()
    assert check_certifiable(made) is made
    made.distance_layers[1].p.fill_(1000.0)
    with pytest.raises(Incompatible, match=r"in training at p = 1000, and only p = infinity is certified.*Train to"):
        check_certifiable(made)
    with pytest.raises(Incompatible, match="not Network; train with --model linf-net"):
        check_certifiable(build_model("mlp", colours()))


@pytest.mark.parametrize("spec", [SPEC, "linf-net:width=300,depth=6"])
def test_rounding_is_larger_than_what_float32_loses_and_still_small(spec):
    made = network(spec=spec).eval()
    exact = copy.deepcopy(made).double()
    x = torch.rand(50, 3, 5, 5, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        lost = float((exact(x.double()) - made(x)).abs().max())
    assert 0 < lost <= made.rounding < 1e-3


def test_intervals_are_no_wider_than_the_box_at_any_layer():
    made = network().eval()
    rng = torch.Generator().manual_seed(4)
    x, epsilon = torch.rand(10, 3, 5, 5, generator=rng), 0.07
    lower, upper = (made.normalize(x + side).flatten(1) for side in (-epsilon, epsilon))
    with torch.no_grad():
        for layer in made.distance_layers:
            lower, upper = layer.bounds(lower, upper)
            assert bool((upper >= lower).all())
            assert float((upper - lower).max()) <= 2 * epsilon / made.scale + 1e-4


def test_another_network_starts_from_other_weights_of_the_same_kind():
    made = network()
    twin = fresh_copy(made, made, 3)
    assert isinstance(twin, LinfNetwork)
    for layer, other in zip(made.distance_layers, twin.distance_layers, strict=True):
        assert not torch.equal(layer.weight, other.weight)
    assert twin.distance_layers[1].weight.detach().diagonal().tolist() == [-10.0] * 24
