"""Weight decay that spares biases and norms: which parameters those are, and what a step does to them."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from weathered.core.checkpoint import newest_checkpoint
from weathered.core.decay import biases_and_norms
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.procedures.jocor import JoCoR

NETWORKS = ("cnn_small", "cnn_small:norm=group", "mlp", "resnet:depth=26,width=8,small=true,variant=d")


class Tempered(nn.Module):
    """A network with norm weights, attention, and a scalar that is neither a bias nor a norm's."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.temperature = nn.Parameter(torch.ones(1))


def names(module: nn.Module) -> set[str]:
    spared = {id(parameter) for parameter in biases_and_norms([module])}
    return {name for name, parameter in module.named_parameters() if id(parameter) in spared}


def test_norms_are_known_by_kind_and_scalars_are_decayed():
    assert names(Tempered()) == {
        *("layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.2.weight"),
        *("attention.in_proj_bias", "attention.out_proj.bias"),
    }


def test_of_a_timm_network_all_but_weights_of_layers_are_spared():
    body = timm.create_model("convnext_atto", num_classes=3)
    norms = {f"{n}.{p}" for n, m in body.named_modules() if isinstance(m, nn.LayerNorm) for p in ("weight", "bias")}
    biases = {name for name, _ in body.named_parameters() if name.endswith("bias")}
    assert norms
    assert names(body) == norms | biases


def test_frozen_parameters_are_in_no_group_and_shared_ones_in_one():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    assert biases_and_norms([layer]) == []
    norm = nn.LayerNorm(3)
    assert len(biases_and_norms([norm, norm, nn.Sequential(norm)])) == 2


@pytest.mark.parametrize("network", NETWORKS)
def test_groups_partition_the_trainable_parameters(network, small_digits):
    run = Run(build_model(network, small_digits), small_digits, settings=Settings(no_bias_decay=True))
    decayed, spared = run.optimizer.param_groups
    assert decayed["weight_decay"] == run.settings.weight_decay
    assert spared["weight_decay"] == 0
    grouped = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in run.model.parameters())
    assert all(p.ndim > 1 for p in decayed["params"])


def test_the_second_network_of_a_procedure_is_spared_as_well(small_digits):
    def model(seed: int) -> nn.Module:
        return build_model("cnn_small:width=8", small_digits, seed=seed)

    run = Run(model, small_digits, procedure=JoCoR(), settings=Settings(no_bias_decay=True))
    one = len(biases_and_norms([run.model]))
    assert len(run.optimizer.param_groups[1]["params"]) == 2 * one


@pytest.mark.parametrize("network", NETWORKS)
def test_without_gradients_a_step_shrinks_weights_and_leaves_the_rest(network, small_digits):
    settings = Settings(no_bias_decay=True, momentum=0.0, lr=0.5, weight_decay=0.1)
    run = Run(build_model(network, small_digits), small_digits, settings=settings)
    spared = {id(p) for p in biases_and_norms([run.model])}
    before = {p: p.detach().clone() for p in run.parameters}
    for parameter in run.parameters:
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    for parameter, was in before.items():
        if id(parameter) in spared:
            assert torch.equal(parameter, was)
        else:
            assert_close(parameter.detach(), was * (1 - 0.5 * 0.1))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_without_weight_decay_it_changes_nothing(optimizer, small_digits):
    weights = []
    for spare in (True, False):
        settings = Settings(epochs=1, batch_size=50, optimizer=optimizer, weight_decay=0.0, no_bias_decay=spare)
        run = fit(Run(build_model("cnn_small:width=8", small_digits), small_digits, settings=settings))
        weights.append(torch.cat([p.detach().flatten() for p in run.parameters]))
    assert torch.equal(*weights)


def test_a_run_with_two_groups_goes_on_bit_for_bit(small_digits, tmp_path):
    def run() -> Run:
        settings = Settings(epochs=1, batch_size=50, no_bias_decay=True, checkpoint_seconds=0.0)
        return Run(build_model("cnn_small:width=8", small_digits), small_digits, settings=settings)

    whole, halted = fit(run()), run()
    fit(halted, max_steps=2, folder=tmp_path)
    assert newest_checkpoint(tmp_path) is not None
    resumed = fit(run(), folder=tmp_path)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters, resumed.parameters, strict=True))
