"""Manifold mixup: mixup at the input, plain training at lam = 1, one layer once, gradients to both, no hooks left."""

import copy

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.mixing.base import blend
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.nn.hidden import changed_output, stage_names
from weathered.procedures.manifold_mixup import ManifoldMixup, mixed_hidden

X = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PARTNER = torch.tensor([3, 2, 1, 5, 4, 0])


def network(*, affine: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    act = nn.Identity if affine else nn.ReLU
    return nn.Sequential(nn.Linear(5, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3)).double()


def mixed(net: nn.Module, layer: str, lam: float, partner: torch.Tensor = PARTNER, x: torch.Tensor = X):
    with mixed_hidden(net, layer, lam, partner):
        return net(x)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3", "4"])
def test_a_share_of_one_and_the_own_partner_change_nothing(layer):
    net = network()
    assert_close(mixed(net, layer, 1.0), net(X), rtol=0, atol=1e-12)
    assert_close(mixed(net, layer, 0.3, torch.arange(6)), net(X), rtol=0, atol=1e-12)


def test_batch_normalisation_in_training_sees_no_mixture_either():
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().train()
    assert_close(mixed(net, "0", 1.0), net(X))


def test_for_affine_networks_the_layer_does_not_matter():
    net = network(affine=True)
    logits = [mixed(net, layer, 0.3) for layer in ("0", "2", "4")]
    for other in logits[1:]:
        assert_close(other, logits[0], rtol=0, atol=1e-10)


def test_mixing_logits_is_mixing_what_is_said_and_so_is_mixing_before_the_last_linear_layer():
    net = network()
    expected = 0.3 * net(X) + 0.7 * net(X)[PARTNER]
    assert_close(mixed(net, "4", 0.3), expected)
    assert_close(mixed(net, "3", 0.3), expected)


def test_gradients_reach_a_sample_through_its_role_as_partner_alone_where_lam_is_0():
    x = X.clone().requires_grad_()
    loss = mixed(network(), "1", 0.0, x=x)[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient[0].abs().sum() == 0
    assert gradient[3].abs().sum() > 0


def test_parameters_below_the_layer_learn():
    net = network()
    mixed(net, "3", 0.4).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net[0].parameters())


def test_no_hook_is_left_behind_after_an_error_either():
    net = network()
    before = copy.deepcopy(net)
    mixed(net, "1", 0.3)
    with pytest.raises(RuntimeError, match="stop"), mixed_hidden(net, "1", 0.3, PARTNER):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(net.eval()(X), before.eval()(X))


def test_a_layer_that_is_called_again_is_mixed_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x):
            return self.layer(self.layer(x))

    assert_close(mixed(Twice(), "layer", 0.3), blend(X, 0.3, PARTNER))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_layers_that_cannot_be_mixed_are_refused():
    net = network()
    with pytest.raises(ValueError, match="has no layer 'layer9'"):
        mixed(net, "layer9", 0.3)
    with pytest.raises(ValueError, match="gives tuple, not one tensor"):
        mixed(nn.Sequential(Pair()), "0", 0.3)
    with pytest.raises(ValueError, match="was not called"), changed_output(net, "1", lambda h: h):
        pass
    net[0].grad_checkpointing = True
    with pytest.raises(ValueError, match="checkpointing"):
        mixed(net, "1", 0.3)


def run_of(dataset: Dataset, part, model: str = "cnn_small:width=8", **settings) -> Run:
    settings = Settings(**{"epochs": 1, "batch_size": 16, **settings})
    return Run(lambda seed: build_model(model, dataset, seed=seed), dataset, procedure=part, settings=settings)


def test_stages_of_networks_are_known(small_digits: Dataset):
    assert stage_names(build_model("cnn_small:width=8", small_digits)) == tuple(f"body.stages.{i}" for i in range(3))
    assert stage_names(build_model("mlp:depth=2", small_digits)) == ("body.layers.2", "body.layers.4")
    resnet = build_model("timm:resnet18", small_digits)
    assert [name.rpartition(".")[2] for name in stage_names(resnet)] == ["layer1", "layer2", "layer3", "layer4"]
    assert stage_names(nn.Linear(2, 2)) == ()


def test_the_input_alone_is_mixup_on_the_same_draws(small_digits: Dataset):
    part = ManifoldMixup(alpha=1.0, layers=("input",))
    run = run_of(small_digits, part)
    rows = torch.arange(16)
    batch = Batch(small_digits.floats(rows), Target.hard(small_digits.labels[rows]), rows)
    run.begin_step()
    found = part.loss(run, batch)
    run.begin_step()
    rng = run.generator("manifold mixup")
    torch.randint(1, (), generator=rng)
    expected = MixUp(alpha=1.0)(batch, rng)
    assert not expected.target.is_hard
    assert_close(expected.target.dense(10).sum(1), torch.ones(16), rtol=0, atol=1e-6)
    assert_close(found, run.objective(run.forward(expected.x), expected), rtol=0, atol=1e-6)


def test_the_loss_is_that_of_hidden_states_and_labels_mixed_alike(small_digits: Dataset):
    """By hand, layer by layer: the first part of the network, the mixture, the rest of it."""
    part = ManifoldMixup(alpha=2.0, layers=("input", "body.stages.0", "body.stages.2"))
    run, rows, seen = run_of(small_digits, part), torch.arange(16), set()
    batch = Batch(small_digits.floats(rows), Target.hard(small_digits.labels[rows]), rows)
    network = run.model.train()
    for step in range(12):
        run.step = step
        run.begin_step()
        layer, lam, partner = part.draw(16, run.generator("manifold mixup"))
        run.begin_step()
        found = part.loss(run, batch)
        h = network.normalize(batch.x)
        h = lam * h + (1 - lam) * h[partner] if layer == "input" else h
        for number, stage in enumerate(network.body.stages):
            h = stage(network.body.stage_input(h, number))
            h = lam * h + (1 - lam) * h[partner] if layer == f"body.stages.{number}" else h
        logits = network.head(h.mean((2, 3)))
        losses = [F.cross_entropy(logits, y) for y in (batch.target.labels[0], batch.target.labels[0][partner])]
        assert_close(found, lam * losses[0] + (1 - lam) * losses[1], rtol=1e-5, atol=1e-5)
        seen.add(layer)
    assert seen == set(part.eligible)


def test_shares_follow_the_beta_distribution_that_was_asked_for(small_digits: Dataset):
    part = ManifoldMixup(alpha=0.4)
    run_of(small_digits, part)
    shares = [part.draw(4, torch.Generator().manual_seed(seed))[1] for seed in range(2000)]
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


class Residual(nn.Module):
    """A block with a shortcut, between two linear layers, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.first, self.branch, self.block = nn.Linear(64, 12), nn.Linear(12, 12), nn.Identity()
        self.last, self.idle, self.pair = nn.Linear(12, 10), nn.Linear(2, 2), Pair()

    def forward(self, x):
        h = self.first(x.flatten(1))
        h = self.block(h + self.branch(h).relu())
        return self.last(self.pair(h)[0])


def test_layers_that_part_of_a_sample_passes_by_are_refused(small_digits: Dataset):
    def run_on(*layers: str) -> Run:
        torch.manual_seed(0)
        part = ManifoldMixup(layers=layers)
        return Run(Residual(), small_digits, procedure=part, settings=Settings(epochs=1, batch_size=16))

    run_on("input", "first", "block", "last")
    with pytest.raises(SpecError, match="passes by the layer 'branch', as in a branch beside a shortcut"):
        run_on("block", "branch")
    with pytest.raises(SpecError, match="layer 'idle' was not called"):
        run_on("idle")
    with pytest.raises(SpecError, match="layer 'pair' gives tuple"):
        run_on("pair")
    before = copy.deepcopy(run_on("block").model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in run_on("first").model.state_dict().items())


def test_stages_of_timm_inside_a_block_are_not_taken_for_its_end():
    pixels = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    photographs = Dataset.of(pixels, torch.arange(4) % 2)
    with pytest.raises(SpecError, match="passes by the layer 'body.blocks.0.stack.act3'"):
        run_of(photographs, ManifoldMixup(), "timm:xception41", batch_size=4)
    run_of(photographs, ManifoldMixup(), "timm:resnet18", batch_size=4)


def test_depths_are_drawn_uniformly(small_digits: Dataset):
    part = ManifoldMixup()
    run_of(small_digits, part)
    drawn = [part.draw(4, torch.Generator().manual_seed(seed))[0] for seed in range(3000)]
    counts = [drawn.count(layer) for layer in part.eligible]
    assert part.eligible == ("input", "body.stages.0", "body.stages.1")
    assert sum(counts) == 3000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("model", "epochs"), [("cnn_small:width=8", 6), ("mlp:width=32", 40)])
def test_a_run_learns_and_predicts_without_mixing(small_digits: Dataset, model, epochs):
    run = fit(run_of(small_digits, ManifoldMixup(), model, epochs=epochs, optimizer="adam", lr=3e-3))
    hits = (run.predict(small_digits).argmax(1) == small_digits.labels).double().mean()
    assert hits > 0.5
    assert not any(module._forward_hooks for module in run.model.modules())
    assert torch.equal(run.predict(small_digits), run.predict(small_digits))


def test_what_does_not_fit_is_refused(small_digits: Dataset):
    with pytest.raises(ValueError, match="alpha must be > 0"):
        ManifoldMixup(alpha=0)
    with pytest.raises(ValueError, match="layers must be a list of names, got 'stem'"):
        ManifoldMixup(layers="stem")
    with pytest.raises(ValueError, match="layers must differ"):
        ManifoldMixup(layers=("input", "input"))
    with pytest.raises(SpecError, match="no layer 'layer1'. Its stages are body.stages.0"):
        run_of(small_digits, ManifoldMixup(layers=("layer1",)))


def test_a_resumed_run_is_the_same(images, assert_resumes):
    assert_resumes(lambda: run_of(images, ManifoldMixup(), epochs=2))
