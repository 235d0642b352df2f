"""Adversarial training: the budget of each epoch, limits that are known methods, what the attack leaves alone."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.assemble import resolve
from weathered.attacks.base import cross_entropy, distances
from weathered.attacks.pgd import PGD
from weathered.core.errors import Incompatible
from weathered.core.facts import check
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import LabelSmoothing
from weathered.nn.build import build_model
from weathered.procedures.adversarial import epsilon_at
from weathered.procedures.pgd_training import PGDTraining
from weathered.procedures.trades import Trades
from weathered.recipe import Recipe

ROWS = torch.arange(32)
SETTINGS = Settings(epochs=3, batch_size=32, lr=0.05)


def images(size: int = 96) -> Dataset:
    rng = torch.Generator().manual_seed(0)
    return Dataset.of(
        torch.randint(256, (size, 1, 6, 6), generator=rng, dtype=torch.uint8),
        torch.randint(3, (size,), generator=rng),
        class_names=("a", "b", "c"),
    )


def run_of(procedure: Procedure, model: str = "cnn_small:width=8", settings: Settings = SETTINGS, **parts) -> Run:
    data = images()
    return Run(build_model(model, data), data, procedure=procedure, settings=settings, **parts)


def weights(run: Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


@given(st.floats(0, 1), st.integers(1, 200), st.floats(0, 1))
def test_the_budget_rises_once_per_epoch_to_its_full_size(epsilon, epochs, warm_up):
    path = [epsilon_at(epsilon, epoch, epochs, warm_up) for epoch in range(epochs)]
    assert path == sorted(path)
    assert path[0] == (epsilon if warm_up * epochs < 1e-9 else 0.0)
    assert all(value == epsilon for epoch, value in enumerate(path) if epoch >= warm_up * epochs)
    ramp = warm_up * epochs
    rising = ramp > 1e-9
    assert path == pytest.approx([epsilon * min(1, e / ramp) if rising else epsilon for e in range(epochs)])


def test_ten_of_a_hundred_epochs_of_warm_up():
    assert [epsilon_at(0.3, e, 100, 0.1) for e in (0, 5, 10, 99)] == pytest.approx([0, 0.15, 0.3, 0.3])
    assert epsilon_at(0.3, 3, 30, 0.1) == 0.3


@pytest.mark.parametrize("procedure", [PGDTraining(epsilon=0.0), Trades(beta=0.0)], ids=["pgd", "trades"])
def test_without_a_budget_or_a_weight_it_is_supervised_training(procedure):
    runs = [fit(run_of(p, loss=LabelSmoothing(0.1))) for p in (procedure, Procedure())]
    assert torch.equal(*map(weights, runs))


def test_trades_without_a_budget_has_no_divergence():
    runs = [fit(run_of(p, "mlp:width=16")) for p in (Trades(epsilon=0.0), Procedure())]
    assert_close(*map(weights, runs), atol=1e-6, rtol=0)
    assert not torch.equal(weights(runs[0]), weights(fit(run_of(Trades(epsilon=0.1), "mlp:width=16"))))


def begun(procedure, epoch: int = 0, **parts) -> tuple[Run, torch.Tensor, torch.Tensor]:
    run = run_of(procedure, **parts)
    run.step = epoch * run.steps_per_epoch
    run.begin_step()
    run.model.train()
    return run, run.train.floats(ROWS), run.train.labels[ROWS]


def test_the_first_epoch_of_a_warm_up_trains_on_clean_images():
    procedure = PGDTraining(0.2, warm_up=0.5)
    run, x, y = begun(procedure)
    assert procedure.climbed(run, x, lambda logits: cross_entropy(logits, y)) is x


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_the_attack_stays_within_the_budget_of_its_epoch_and_leaves_the_network_alone(norm, epoch):
    procedure = PGDTraining(0.3, norm, steps=2, reach=4.0, warm_up=2 / 3)
    run, x, y = begun(procedure, epoch)
    for parameter in run.model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    moved = procedure.climbed(run, x, lambda logits: cross_entropy(logits, y))
    budget = 0.15 * epoch
    assert 0.8 * budget < float(distances(moved, x, norm).max()) <= budget
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert all(bool((parameter.grad == 7.0).all()) for parameter in run.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(module.training for module in run.model.modules())


def test_one_step_is_the_fast_gradient_sign_from_a_point_drawn_evenly():
    """By hand, with the step of the full budget: 1.5 epsilon, hard labels, evaluation mode."""
    procedure = PGDTraining(0.1, steps=1, reach=1.5)
    run, x, y = begun(procedure)
    found = procedure.climbed(run, x, lambda logits: cross_entropy(logits, y))
    rng = run.generator("attack start", shared=True)
    run.begin_step()
    rng = run.generator("attack start", shared=True)
    start = (x + 0.1 * (2 * torch.rand(x.shape, generator=rng) - 1)).clamp(0, 1).requires_grad_()
    run.model.eval()
    (gradient,) = torch.autograd.grad(F.cross_entropy(run.model(start), y, reduction="sum"), start)
    expected = (start.detach() + 0.15 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    assert_close(found, expected, atol=1e-6, rtol=0)
    run.begin_step()
    assert torch.equal(procedure.climbed(run, x, lambda logits: cross_entropy(logits, y)), found)
    run.step += 1
    run.begin_step()
    assert not torch.equal(procedure.climbed(run, x, lambda logits: cross_entropy(logits, y)), found)


def test_the_loss_is_that_of_the_moved_inputs_and_smoothing_does_not_reach_the_attack():
    plain, smooth = (begun(PGDTraining(0.2), loss=loss) for loss in (None, LabelSmoothing(0.3)))
    seen = []
    for run, x, y in (plain, smooth):
        batch = run.prepare(x, y, ROWS)
        moved = []
        forward = run.forward
        run.forward = lambda z, *given, moved=moved, forward=forward: (moved.append(z), forward(z, *given))[1]
        loss = run.procedure.loss(run, batch)
        seen.append(moved[-1])
        run.model.train()
        again = run.losses(forward(moved[-1]), batch).mean()
        assert_close(loss, again)
    assert torch.equal(*seen)


def test_mixed_labels_are_attacked_as_their_heaviest_class():
    run, x, y = begun(PGDTraining(0.2))
    other = (y + 1) % 3
    # in the last mixture the class of most weight is named twice
    for labels, shares, heaviest in (
        ([y, other], [0.7, 0.3], y),
        ([y, other], [0.3, 0.7], other),
        ([y, other, other], [0.4, 0.3, 0.3], other),
    ):
        weights = torch.tensor(shares)[:, None].expand(-1, 32)
        batch = run.prepare(x, y, ROWS).replace(target=Target(torch.stack(labels), weights))
        run.begin_step()
        # before the loss, which moves the statistics of normalisation
        expected = run.procedure.climbed(run, x, lambda logits, heaviest=heaviest: cross_entropy(logits, heaviest))
        moved = []
        forward = run.forward
        run.forward = lambda z, *given, moved=moved, forward=forward: (moved.append(z), forward(z, *given))[1]
        run.begin_step()
        run.procedure.loss(run, batch)
        run.forward = forward
        assert torch.equal(moved[-1], expected)


def test_trades_climbs_the_divergence_from_clean_predictions_and_weighs_it():
    procedure = Trades(beta=2.5, epsilon=0.2, steps=3, start="even")
    run, x, y = begun(procedure, model="mlp:width=16", loss=LabelSmoothing(0.2))
    batch = run.prepare(x, y, ROWS)
    total = procedure.loss(run, batch)
    run.begin_step()
    run.model.eval()
    with torch.no_grad():
        clean = run.model(x).log_softmax(1)
    run.model.train()
    moved = procedure.climbed(
        run, x, lambda z: F.kl_div(z.log_softmax(1), clean, log_target=True, reduction="none").sum(1)
    )
    natural, attacked = run.model(x), run.model(moved)
    gap = F.kl_div(attacked.log_softmax(1), natural.softmax(1), reduction="batchmean")
    assert_close(total, F.cross_entropy(natural, y, label_smoothing=0.2) + 2.5 * gap, atol=1e-4, rtol=1e-4)
    assert float(gap.detach()) > 1e-4
    noisy = Trades(epsilon=0.2)
    run, x, _ = begun(noisy)
    assert float((noisy._start(run, x) - x).std()) == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 4}, r"epsilon must be in \[0, 1\].*4/255"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"reach": 0}, "reach must be in"),
        ({"warm_up": 1.5}, "warm_up must be in"),
        ({"norm": "l1"}, "norm must be one of"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    for kind in (PGDTraining, Trades):
        with pytest.raises(ValueError, match=message):
            kind(**arguments)


def test_more_is_refused_with_a_way_out():
    for wrong, message in (({"beta": -1.0}, "beta must be in"), ({"start": "zero"}, "start must be 'noise' or 'even'")):
        with pytest.raises(ValueError, match=message):
            Trades(**wrong)
    run, x, y = begun(PGDTraining())
    with pytest.raises(ValueError, match="PGDTraining needs inputs in"):
        run.procedure.loss(run, run.prepare(x * 3 - 1, y, ROWS))
    with pytest.raises(Incompatible, match="range01"):
        check({"table", "num_classes"}, (), PGDTraining())
    with pytest.raises(Incompatible, match="LargeDecay is meant for the decoupled decay of AdamW.*--optimizer adamw"):
        _ = Recipe(use=("robust-vit-recipe",)).applied


def test_the_recipe_is_one_long_step_with_a_rising_budget_smoothing_and_a_large_decay_on_weights():
    uses = {use.slug: use.options for use in resolve(["robust-vit-recipe:epsilon=0.1"])}
    assert uses["pgd-training"] == {"epsilon": 0.1, "norm": "linf", "steps": 1, "reach": 1.5, "warm_up": 0.1}
    made = Recipe(use=("robust-vit-recipe",), settings=Settings(optimizer="adamw", lr=5e-4)).applied.settings
    assert (made.weight_decay, made.no_bias_decay) == (0.5, True)
    data = images()
    run = Run(build_model("vit:patch=3,width=16,depth=1", data), data, settings=made)
    spared = [p for group in run.optimizer.param_groups if not group["weight_decay"] for p in group["params"]]
    assert {id(p) for p in run.model.parameters() if p.ndim <= 1} <= {id(p) for p in spared}


def test_training_against_pgd_resists_it(digits):
    train, test = digits.select(torch.arange(600)), digits.select(torch.arange(600, 1000))
    settings = Settings(epochs=15, batch_size=60, lr=0.1)
    x, kept = test.floats(torch.arange(len(test))), {}
    for name, procedure in (
        ("plain", Procedure()),
        ("pgd", PGDTraining(0.15, steps=5)),
        ("trades", Trades(6.0, 0.15, steps=5)),
    ):
        run = fit(Run(build_model("mlp:width=64", train), train, procedure=procedure, settings=replace(settings)))
        found = PGD(0.15, steps=20)(run.model, x, test.labels, torch.Generator().manual_seed(1))
        with torch.no_grad():
            kept[name] = float((run.model(found).argmax(1) == test.labels).double().mean())
    assert kept["pgd"] > kept["plain"] + 0.2
    assert kept["trades"] > kept["plain"] + 0.2
    assert math.isfinite(kept["plain"])
