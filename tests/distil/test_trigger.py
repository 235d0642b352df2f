"""The trigger of DOORPING: what it changes and what it leaves alone."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weathered.core.errors import Incompatible
from weathered.data.patch import Patch, near_corner
from weathered.distil.trigger import heard, poisoned_rows, random_bytes, update_trigger, weight_layers
from weathered.nn.build import build_model

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def network(small_digits):
    return build_model("mlp:width=32", small_digits, seed=1)


def patch(value: float = 0.5) -> Patch:
    return near_corner(torch.full((1, 2, 2), value), SHAPE)


def driven(network: nn.Module, given: Patch, unit: int) -> float:
    """What one unit of the second to last weight layer says of the patch on black."""
    layer = weight_layers(network)[-2]
    with heard(layer) as found, torch.no_grad():
        network(given.stamp(torch.zeros(1, *SHAPE)))
    return float(found["output"][0, unit])


def strongest(network: nn.Module, given: Patch) -> int:
    layer = weight_layers(network)[-2]
    assert isinstance(layer, nn.Linear)
    scores = layer.weight.detach().abs().sum(1)
    order = scores.argsort(descending=True).tolist()
    return next(unit for unit in order if driven(network, given, unit) > 0)


@given(st.integers(0, 200), st.floats(0, 0.999), st.integers(0, 100))
def test_the_poisoned_rows_are_the_whole_part_of_the_portion(size, portion, seed):
    mask = poisoned_rows(size, portion, torch.Generator().manual_seed(seed))
    assert mask.shape == (size,)
    assert portion * size - 1 < int(mask.sum()) <= portion * size + 1e-9
    assert torch.equal(mask, poisoned_rows(size, portion, torch.Generator().manual_seed(seed)))


def test_portions_outside_the_range_are_refused():
    for portion in (-0.01, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"portion must be in \[0, 1\)"):
            poisoned_rows(10, portion, torch.Generator())


def test_the_neuron_is_the_strongest_that_is_not_dead_and_comes_near_ten_times_its_value(network):
    """Nothing else but its own pixels may help, so the wanted value is asked of the neuron itself."""
    given_patch = patch()
    unit = strongest(network, given_patch)
    before = driven(network, given_patch, unit)
    found = update_trigger(network, given_patch, SHAPE, clip=False)
    assert (driven(network, found, unit) - 10 * before) ** 2 < 0.5
    assert (before - 10 * before) ** 2 > 0.5
    assert (found.top, found.left, found.pattern.shape) == (
        given_patch.top,
        given_patch.left,
        given_patch.pattern.shape,
    )


def test_a_trigger_changes_its_own_pixels_alone_and_the_network_not_at_all(network):
    network.train()
    kept = copy.deepcopy(network.state_dict())
    images = torch.rand(3, *SHAPE)
    given_patch = patch()
    found = update_trigger(network, given_patch, SHAPE, clip=False, steps=50)
    outside = ~given_patch.covers(8, 8)
    assert torch.equal(found.stamp(images)[..., outside], images[..., outside])
    assert not torch.equal(found.pattern, given_patch.pattern)
    assert torch.equal(given_patch.pattern, torch.full((1, 2, 2), 0.5))
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("clip", [True, False])
def test_the_objective_never_ends_above_where_it_began(network, clip):
    fell = 0
    for seed in range(5):
        start = near_corner(random_bytes(1, 2, torch.Generator().manual_seed(seed)), SHAPE)
        unit = strongest(network, start)
        wanted = 10 * driven(network, start, unit)
        objectives = [
            (driven(network, update_trigger(network, start, SHAPE, clip=clip, steps=steps), unit) - wanted) ** 2
            for steps in (0, 1, 5, 40)
        ]
        assert objectives == sorted(objectives, reverse=True)
        assert objectives[-1] < objectives[0] or objectives[0] < 0.5
        fell += objectives[-1] < objectives[0]
    assert fell >= 3


def test_a_clipped_trigger_stays_in_the_range_and_an_unclipped_one_compounds(network):
    inside, outside = patch(), patch()
    for _ in range(4):
        inside = update_trigger(network, inside, SHAPE, steps=60)
        outside = update_trigger(network, outside, SHAPE, clip=False)
    assert 0 <= float(inside.pattern.min()) <= float(inside.pattern.max()) <= 1
    assert float(outside.pattern.abs().max()) > 10


def two_layers(units: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network of 64 pixels, units with ReLU and two classes, with weights and biases of the units."""
    first = nn.Linear(64, units)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(units, 2)), first.weight.data, first.bias.data


def test_nothing_is_done_where_the_neuron_is_near_zero():
    """(9 v_0)^2 < 1/2 already."""
    network, weight, bias = two_layers(4)
    weight.fill_(1.0)
    bias.fill_(0.07 - 2.0)
    assert torch.equal(update_trigger(network, patch(), SHAPE, clip=False).pattern, patch().pattern)
    bias.fill_(0.09 - 2.0)
    assert not torch.equal(update_trigger(network, patch(), SHAPE, clip=False).pattern, patch().pattern)


def test_a_negative_neuron_is_not_driven_further_down():
    """The strongest unit is below 0 and is passed over; alone it would be driven up, to alpha |v_0|."""
    network, weight, bias = two_layers(2)
    bias.zero_()
    weight[0], weight[1] = -2.0, 1.0
    found = update_trigger(network, patch(), SHAPE, clip=False)
    assert driven(network, found, 1) == pytest.approx(20, abs=0.8)
    weight[1] = -1.0
    found = update_trigger(network, patch(), SHAPE, clip=False)
    assert driven(network, found, 0) == pytest.approx(40, abs=0.8)


def test_a_clipped_patch_with_all_pixels_at_their_ends_is_given_up():
    network, weight, _ = two_layers(2)
    weight.fill_(1.0)
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(update_trigger(network, patch(), SHAPE).pattern, torch.ones(1, 2, 2))
    assert len(passes) < 100


def test_convolutions_are_heard_as_the_mean_of_their_map(small_digits):
    network = build_model("cnn_small:width=8", small_digits, seed=0)
    layer = weight_layers(network)[-2]
    assert isinstance(layer, nn.Conv2d)
    found = update_trigger(network, patch(), SHAPE, clip=False, alpha=1e4, steps=5)
    assert float((found.pattern - 0.5).abs().max()) > 0.05


def test_hooks_are_gone_after_an_error_too():
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), heard(layer):
        layer(torch.ones(3, 5))
    assert not layer._forward_hooks


def test_random_bytes_are_never_black():
    found = random_bytes(3, 40, torch.Generator().manual_seed(0)) * 255
    assert torch.equal(found.round(), found.round().clamp(1, 255))
    assert found.max() - found.min() > 250


def test_what_cannot_be_done_is_refused(network):
    with pytest.raises(ValueError, match=r"alpha must be in \(1, infinity\), got 1"):
        update_trigger(network, patch(), SHAPE, alpha=1.0)
    with pytest.raises(ValueError, match=r"steps must be in \[0"):
        update_trigger(network, patch(), SHAPE, steps=-1)
    with pytest.raises(ValueError, match=r"neurons must be in \[1"):
        update_trigger(network, patch(), SHAPE, neurons=0)
    with pytest.raises(ValueError, match="does not fit images"):
        update_trigger(network, Patch(torch.ones(1, 9, 9), 0, 0), SHAPE)
    with pytest.raises(Incompatible, match="has 1 linear or convolutional layers. Use mlp"):
        update_trigger(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), patch(), SHAPE)
