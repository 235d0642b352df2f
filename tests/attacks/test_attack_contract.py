"""What holds for every attack: its budget, what it leaves alone, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from weathered.attacks.apgd import APGDCrossEntropy, APGDTargeted
from weathered.attacks.attack_ensemble import AttackEnsemble
from weathered.attacks.base import Ball, distances, margin
from weathered.attacks.fgsm import FGSM
from weathered.attacks.pgd import PGD
from weathered.attacks.square import Square
from weathered.core.errors import NonFinite


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Network(nn.Module):
    """Small, with batch normalisation and dropout, of which an attack must see the evaluation mode."""

    def __init__(self, classes: int = 4, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Flatten(), nn.Linear(18, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, classes)
            )

    def forward(self, x):
        return self.layers(2 * x - 1)


def attacks(epsilon: float, norm: str, early_stop: bool = True):
    found = [
        FGSM(epsilon, norm, early_stop),
        PGD(epsilon, norm, steps=4, early_stop=early_stop),
        PGD(epsilon, norm, steps=2, restarts=2, early_stop=early_stop),
        APGDCrossEntropy(epsilon, norm, steps=6, restarts=2, early_stop=early_stop),
        APGDTargeted(epsilon, norm, steps=5, targets=2, early_stop=early_stop),
    ]
    if norm == "linf":
        found.append(Square(epsilon, queries=10, early_stop=early_stop))
    return [*found, AttackEnsemble([found[-1], found[0]])]


EVERY = [pytest.param(i, norm, id=f"{norm}-{i}") for norm, count in (("linf", 7), ("l2", 6)) for i in range(count)]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["linf", "l2"]), st.floats(0, 1), st.sampled_from([2, 3, 4]), st.integers(0, 999), st.booleans())
def test_budget_and_range_are_exact_and_nothing_else_changes(norm, epsilon, classes, seed, early_stop):
    model = Network(classes).train()
    model.layers[1].weight.grad = torch.ones_like(model.layers[1].weight)
    x = torch.rand(6, 2, 3, 3, generator=rng(seed))
    x[0], x[1] = 0.0, 1.0
    before, y = x.clone(), torch.randint(classes, (6,), generator=rng(seed))
    state = torch.random.get_rng_state()
    running = model.layers[2].running_mean.clone()
    for attack in attacks(epsilon, norm, early_stop):
        found = attack(model, x, y, rng(seed))
        assert float(distances(found, x, norm).max()) <= epsilon
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        assert found.shape == x.shape
        assert not found.requires_grad
        if epsilon == 0:
            assert torch.equal(found, x)
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(model.layers[2].running_mean, running)
    assert torch.equal(model.layers[1].weight.grad, torch.ones_like(model.layers[1].weight))
    assert model.layers[5].weight.grad is None


@pytest.mark.parametrize(("which", "norm"), EVERY)
def test_stopping_early_turns_the_same_inputs_and_rows_do_not_depend_on_each_other(which, norm):
    model, x = Network().double().eval(), torch.rand(24, 2, 3, 3, generator=rng(1)).double()
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    epsilon = 0.08 if norm == "linf" else 0.25
    early, late = (attacks(epsilon, norm, stop)[which](model, x, y, rng(2)) for stop in (True, False))
    turned = [model(found).argmax(1) != y for found in (early, late)]
    assert torch.equal(*turned)
    assert 3 < int(turned[0].sum()) < 24
    assert torch.equal(early[:3], x[:3])
    assert bool((margin(model(late), y) >= margin(model(x), y)).all())
    assert torch.equal(early, attacks(epsilon, norm)[which](model, x, y, rng(2)))


@pytest.mark.parametrize(("which", "norm"), EVERY)
def test_on_a_linear_network_of_two_classes_it_turns_what_can_be_turned(which, norm):
    """The margin can grow by epsilon times the dual norm of the difference of weights, and not by more."""
    weight = torch.tensor([[0.5, -1.0, 1.0, 0.25], [0.0, 1.0, 2.0, -1.0]], dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(torch.tensor([0.4, 0.0]))
    x = 0.3 + 0.4 * torch.rand(400, 1, 2, 2, generator=rng(3)).double()
    y, epsilon = model(x).argmax(1), 0.1
    gap = weight[0] - weight[1]
    reach = epsilon * float(gap.abs().sum() if norm == "linf" else gap.norm())
    room = (-margin(model(x), y) - reach).detach()
    clear = room.abs() > 1e-2 * reach
    x, y, room = x[clear], y[clear], room[clear]
    attack = attacks(epsilon, norm)[which]
    if isinstance(attack, Square):
        attack = Square(epsilon, queries=400)
    if isinstance(attack, PGD):
        attack = PGD(epsilon, norm, steps=60, step_size=epsilon / 4)
    found = attack(model, x, y, rng())
    turned = model(found).argmax(1) != y
    assert torch.equal(turned, room < 0)
    assert 50 < int(turned.sum()) < 350


def test_random_starts_fill_the_ball():
    x = torch.full((4000, 1, 1, 2), 0.5)
    for norm, share in (("linf", 0.25), ("l2", 0.25)):
        ball = Ball.around(x, 0.2, norm)
        found = ball.random(rng())
        inside = distances(found, x, norm) <= 0.1
        assert float(inside.double().mean()) == pytest.approx(share, abs=0.03)
        assert_close(found.mean(0), x[0], atol=0.01, rtol=0)


def test_directions_climb_most_and_survive_tiny_gradients():
    gradient = torch.tensor([[3e-38, -4e-38], [0.0, 0.0], [3.0, -4.0]])
    ball = Ball.around(torch.full((3, 2), 0.5), 0.1, "l2")
    unit = torch.tensor([0.6, -0.8])
    assert_close(ball.direction(gradient), torch.stack([unit, torch.zeros(2), unit]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 4}, r"epsilon must be in \[0, 1\].*4/255"),
        ({"epsilon": -0.1, "norm": "l2"}, "epsilon must be >= 0"),
        ({"epsilon": math.nan, "norm": "l2"}, "epsilon must be >= 0"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"step_size": 0.0}, "step_size must be > 0"),
        ({"restarts": 2, "random_start": False}, "restarts from the same input"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGD(**arguments)


def test_other_methods_refuse_their_arguments_too():
    for make, message in (
        (lambda: Square(norm="l2"), "Square works in the norm linf"),
        (lambda: Square(queries=0), "queries must be at least 1"),
        (lambda: Square(area=0), r"area must be in \(0, 1\]"),
        (lambda: APGDTargeted(targets=0), "targets must be at least 1"),
        (lambda: APGDCrossEntropy(steps=0), "steps must be at least 1"),
        (lambda: AttackEnsemble([]), "at least one attack"),
        (lambda: AttackEnsemble([PGD(0.1), Square(0.2)]), "one epsilon"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_wrong_inputs_are_refused_and_the_model_is_left_in_its_mode():
    model, x, y = Network().train(), torch.rand(6, 2, 3, 3), torch.zeros(6).long()
    for wrong, labels, message in (
        (x * 255, y, "leave normalisation to the model"),
        ((x * 255).byte(), y, "divide bytes by 255"),
        (x, y[:3], "y must hold 6 labels"),
        (x, y.float(), "y must hold 6 labels"),
        (x, y + 4, r"labels must be in \[0, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            PGD()(model, wrong, labels, rng())
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="leave normalisation"):
        PGD()(model, x, y, rng())
    assert model.training


def test_numbers_that_are_not_finite_are_no_success():
    model, x, y = Network(), torch.rand(6, 2, 3, 3), torch.zeros(6).long()
    with torch.no_grad():
        model.layers[5].bias[1] = math.nan
    with pytest.raises(NonFinite, match="logits are not finite"):
        PGD()(model, x, y, rng())

    class Away(nn.Module):
        """Finite at the inputs as they are, not a number elsewhere."""

        def forward(self, z):
            gap = (z - 0.5).flatten(1).sum(1, keepdim=True)
            broken = torch.where(gap == 0, 0.0, torch.nan)
            return torch.cat([1 - gap, gap + broken], 1)

    x = torch.full((6, 2, 3, 3), 0.5)
    for attack in (FGSM(0.1), PGD(0.1), Square(0.1, queries=3)):
        with pytest.raises(NonFinite):
            attack(Away(), x, y, rng())


def test_no_inputs_are_no_error():
    assert PGD()(Network(), torch.rand(0, 2, 3, 3), torch.zeros(0).long(), rng()).shape == (0, 2, 3, 3)
