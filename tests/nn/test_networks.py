"""The networks of our own: inner stages by timm's rules, and second networks of one architecture."""

import pytest
import torch
from torch import nn

from weathered.core.rng import derive_seed
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.nn.cnn_small import CNNSmall
from weathered.nn.network import fresh_copy, model_facts
from weathered.procedures.jocor import JoCoR


def stages(x: torch.Tensor, network: CNNSmall) -> list[torch.Tensor]:
    found = []
    for number, stage in enumerate(network.stages):
        x = stage(x if number == 0 else nn.functional.max_pool2d(x, 2))
        found.append(x)
    return found


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        (None, [0, 1, 2]),
        (1, [2]),
        (2, [1, 2]),
        (3, [0, 1, 2]),
        ([0], [0]),
        ([-1], [2]),
        ([-3, 1], [0, 1]),
        ([2, 0], [0, 2]),
        ([1, -2], [1]),
    ],
)
def test_inner_stages_are_chosen_as_timm_chooses_them(indices, expected):
    network, x = CNNSmall(1, 8).eval(), torch.rand(2, 1, 8, 8)
    every = stages(x, network)
    found = network.forward_intermediates(x, indices)
    assert [m.shape for m in found] == [every[i].shape for i in expected]
    assert all(torch.equal(m, every[i]) for m, i in zip(found, expected, strict=True))


@pytest.mark.parametrize("indices", [0, -1, 4, [3], [-4], [0, 5], []])
def test_stages_that_do_not_exist_are_refused(small_digits, indices):
    for network in (CNNSmall(1, 8), build_model("cnn_small:width=8", small_digits)):
        with pytest.raises(ValueError, match=r"stages"):
            network.forward_intermediates(torch.rand(2, 1, 8, 8), indices)


def test_more_than_feature_maps_is_refused(small_digits):
    for network in (CNNSmall(1, 8), build_model("cnn_small:width=8", small_digits)):
        with pytest.raises(ValueError, match="pass intermediates_only=True"):
            network.forward_intermediates(torch.rand(2, 1, 8, 8), [1], intermediates_only=False)


def test_later_stages_are_not_run():
    network, x = CNNSmall(1, 8), torch.rand(2, 1, 8, 8)
    network.stages[1] = nn.Linear(1, 1)
    assert len(network.forward_intermediates(x, [0])) == 1


def tensors(module: nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())


def test_a_second_network_comes_from_the_function_where_the_run_has_one(small_digits):
    """And from its seed alone: the copy of a module would draw each layer by its own rule."""
    seeds = []

    def model(seed: int) -> nn.Module:
        seeds.append(seed)
        network = build_model("cnn_small:width=8", small_digits, seed=seed)
        nn.init.constant_(network.get_classifier().bias, 7.0)  # pyright: ignore[reportArgumentType]
        return network

    run = Run(model, small_digits, procedure=JoCoR(), settings=Settings(seed=3))
    assert seeds == [derive_seed(3, "model"), derive_seed(3, "jocor peer")]
    expected = model(derive_seed(3, "jocor peer"))
    assert all(torch.equal(a, b) for a, b in zip(tensors(run.modules["peer"]), tensors(expected), strict=True))


def test_a_copy_of_a_module_is_drawn_by_its_layers_own_rules():
    network = nn.Sequential(nn.Linear(50, 40), nn.BatchNorm1d(40))
    nn.init.constant_(network[0].weight, 100.0)  # pyright: ignore[reportArgumentType]
    network(torch.randn(8, 50))
    one, same, other = (fresh_copy(network, network, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(same), strict=True))
    assert not torch.equal(one.get_parameter("0.weight"), other.get_parameter("0.weight"))
    assert one.get_parameter("0.weight").abs().max() <= 50**-0.5
    assert torch.equal(one.get_buffer("1.running_mean"), torch.zeros(40))
    assert (network.get_parameter("0.weight") == 100).all()


def test_a_module_with_a_parameter_that_no_layer_draws_is_refused():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    network = nn.Sequential(nn.Linear(2, 2), Scale())
    with pytest.raises(ValueError, match=r"cannot draw new weights for '1' \(Scale has no reset_parameters\); give"):
        fresh_copy(network, network, 0)


def test_a_model_offers_features_only_with_all_that_a_run_calls():
    class Partial(nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
            return x

    class Whole(Partial):
        def get_classifier(self) -> nn.Module:
            return nn.Linear(2, 2)

    assert model_facts(Partial()) == set()
    assert model_facts(Whole()) == {"features", "linear_head"}
