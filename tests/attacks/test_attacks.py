"""Each attack by itself: FGSM and PGD on known ground, the step sizes of APGD, the squares of Square, ensembles."""

from itertools import pairwise

import pytest
import torch
from tests.attacks.test_attack_contract import Network, rng
from torch import nn
from torch.testing import assert_close

from weathered.attacks.apgd import APGDCrossEntropy, APGDTargeted, _look, _State, checkpoints, climb, targeted_dlr
from weathered.attacks.attack_ensemble import AttackEnsemble
from weathered.attacks.base import Ball, Search, margin
from weathered.attacks.fgsm import FGSM
from weathered.attacks.pgd import PGD
from weathered.attacks.square import Square, side_of


class Waves(nn.Module):
    """Inputs bent so that there are many hills to climb."""

    def forward(self, x):
        return 0.5 + 0.5 * torch.sin(40 * x)


def data(model: nn.Module, size: int = 64):
    x = torch.rand(size, 2, 3, 3, generator=rng(5)).double()
    return x, model(x).argmax(1)


def test_one_step_of_pgd_from_the_input_is_fgsm():
    model = Network().double().eval()
    x, y = data(model)
    for norm in ("linf", "l2"):
        one = PGD(0.2, norm, steps=1, step_size=0.2, random_start=False, early_stop=False)
        assert torch.equal(one(model, x, y, rng()), FGSM(0.2, norm, early_stop=False)(model, x, y, rng()))


def test_pgd_follows_the_gradient_of_cross_entropy_and_returns_the_largest_margin_on_its_way():
    model = Network().double().eval()
    x, y = data(model)
    path = [x.clone()]
    for _ in range(3):
        z = path[-1].requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
        path.append((z + 0.03 * gradient.sign()).detach().clamp(x - 0.05, x + 0.05).clamp(0, 1))
    seen = []
    with model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone())):
        attack = PGD(0.05, steps=3, step_size=0.03, random_start=False, early_stop=False)
        found = attack(model, x, y, rng())
    # the inputs as they are are asked about first
    for asked, expected in zip(seen[1:], path, strict=True):
        assert_close(asked, expected.detach(), atol=1e-12, rtol=0)
    margins = torch.stack([margin(model(z), y) for z in path])
    assert_close(margin(model(found), y), margins.amax(0))


def test_more_restarts_turn_no_fewer_and_more_steps_hardly_fewer():
    model = nn.Sequential(Waves(), Network().double()).eval()
    x, y = data(model, 300)
    counts = []
    for restarts in (1, 2, 4):
        found = PGD(0.01, steps=3, restarts=restarts)(model, x, y, rng())
        counts.append(set((model(found).argmax(1) != y).nonzero().flatten().tolist()))
    assert counts[0] <= counts[1] <= counts[2]
    assert len(counts[2]) > len(counts[0])
    plain = Network().double().eval()
    x, y = data(plain, 300)
    turned = []
    for steps in (1, 5, 20, 80):
        found = PGD(0.06, steps=steps, step_size=0.06 * 2.5 / max(steps, 5))(plain, x, y, rng())
        turned.append(int((plain(found).argmax(1) != y).sum()))
    # up to one point, as starts and steps differ
    assert all(later >= earlier - 3 for earlier, later in pairwise(turned))
    assert turned[-1] > turned[0]


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == []
    assert all(b > a for a, b in zip(checkpoints(7), checkpoints(7)[1:], strict=False))


def state(rises: float, best: float, then: float, halved: bool) -> _State:
    one = torch.ones(1)
    return _State(
        z=0 * one, previous=0 * one, gradient=2 * one, value=0 * one, best=5 * one, best_gradient=7 * one,
        best_value=best * one, step=one, rises=rises * one, best_then=then * one, halved_then=torch.tensor([halved]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rises", "best", "then", "halved", "halve"),
    [
        (8, 2.0, 1.0, False, False),
        (7, 2.0, 1.0, False, True),
        (8, 1.0, 1.0, False, True),
        (8, 1.0, 1.0, True, False),
        (7, 2.0, 1.0, True, True),
    ],
)
def test_step_sizes_halve_where_the_search_stalls_and_it_goes_back_to_its_best(rises, best, then, halved, halve):
    """Three quarters of 10 steps are 7.5; without a gain since the last checkpoint, unless halved there already."""
    looked = _look(state(rises, best, then, halved), 10)
    assert float(looked.step) == (0.5 if halve else 1.0)
    assert float(looked.z) == (5.0 if halve else 0.0)
    assert float(looked.gradient) == (7.0 if halve else 2.0)
    assert bool(looked.halved_then) is halve
    assert float(looked.best_then) == best
    assert float(looked.rises) == 0


def test_apgd_steps_with_momentum_from_twice_epsilon():
    """On a ridge the path is known: a step of 2 epsilon, then three quarters of a step and a quarter of the last."""
    seen = []

    class Ridge(nn.Module):
        def forward(self, z):
            seen.append(z.detach().clone())
            height = -(z[:, 0] - 0.25).abs()
            return torch.stack([torch.full_like(height, 100.0), height], 1)

    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    search = Search(Ball.around(x, 0.4), torch.zeros(1).long(), True)
    start = torch.tensor([[0.1, 0.5]], dtype=torch.float64)
    ball = Ball.around(x, 0.4)
    small = Ball(x, 0.05, "linf", ball.low, ball.high)
    search.whole = small
    climb(Ridge(), search, start, lambda rows: lambda logits: logits[:, 1], 20)
    path = torch.cat(seen)[:4, 0]
    assert_close(path, torch.tensor([0.1, 0.2, 0.3, 0.25], dtype=torch.float64))


def test_ratios_of_logits_have_closed_forms_and_do_not_change_with_scale():
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, -2.0]], dtype=torch.float64)
    label, target = torch.tensor([0]), torch.tensor([2])
    assert float(targeted_dlr(logits, label, target)) == pytest.approx(-1 / (4 - 0.5))
    assert_close(targeted_dlr(7 * logits + 3, label, target), targeted_dlr(logits, label, target))
    three = logits[:, :3]
    assert float(targeted_dlr(three, label, target)) == pytest.approx(-1 / (4 - 1))
    assert float(targeted_dlr(logits[:, :2], label, torch.tensor([1]))) == -3.0
    assert bool(torch.isfinite(targeted_dlr(torch.zeros(2, 4), torch.zeros(2).long(), torch.ones(2).long())).all())


class Sharp(nn.Module):
    """A network with logits so large that in float32 the cross entropy is flat."""

    def __init__(self):
        super().__init__()
        self.inner = Network()

    def forward(self, x):
        return 1e5 * self.inner(x)


def test_saturated_logits_stop_cross_entropy_and_not_the_targeted_ratio():
    model = Sharp().eval()
    x = torch.rand(64, 2, 3, 3, generator=rng(5))
    y, plain = model(x).argmax(1), Network().eval()
    turned = {}
    for name, attack, net in (
        ("cross entropy", APGDCrossEntropy(0.1, steps=20), model),
        ("targeted", APGDTargeted(0.1, steps=20), model),
        ("targeted, plain network", APGDTargeted(0.1, steps=20), plain),
        ("square", Square(0.1, queries=200), model),
    ):
        turned[name] = float((net(attack(net, x, y, rng())).argmax(1) != y).double().mean())
    assert turned["targeted"] == pytest.approx(turned["targeted, plain network"], abs=0.02)
    assert turned["targeted"] > turned["cross entropy"] + 0.2
    assert turned["square"] > turned["cross entropy"] + 0.1


class Stepped(nn.Module):
    """A network behind inputs that are rounded, so that its gradient is 0."""

    def __init__(self):
        super().__init__()
        self.inner = Network()

    def forward(self, x):
        return self.inner(torch.round(x * 50) / 50 + 0 * x)


def test_square_needs_no_gradient():
    model = Stepped().eval()
    x = torch.rand(64, 2, 3, 3, generator=rng(5))
    y = model(x).argmax(1)
    counts = [
        int((model(attack(model, x, y, rng())).argmax(1) != y).sum())
        for attack in (PGD(0.1, random_start=False), Square(0.1, queries=150))
    ]
    assert counts[0] == 0
    assert counts[1] > 20


def test_squares_begin_as_stripes_and_shrink_by_the_schedule():
    sides = [side_of(query, 10_000, 0.8, 32, 32) for query in (0, 10, 11, 50, 51, 8000, 8001, 9999)]
    assert sides == [29, 29, 20, 20, 14, 2, 1, 1]
    assert side_of(0, 100, 1.0, 8, 3) == 3
    seen = []

    class Watch(nn.Module):
        def forward(self, z):
            seen.append(z.clone())
            gain = z.flatten(1).double().sum(1)
            return torch.stack([torch.full_like(gain, 1e4), gain], 1)

    x = torch.full((2, 3, 8, 8), 0.5)
    found = Square(0.1, queries=60)(Watch(), x, torch.zeros(2).long(), rng())
    stripes = seen[1]
    assert bool((stripes == stripes[:, :, :1]).all())
    assert_close((stripes - 0.5).abs(), torch.full_like(stripes, 0.1))
    sums = torch.stack([z.flatten(1).double().sum(1) for z in seen])
    assert_close(found.flatten(1).double().sum(1), sums[1:].amax(0))
    changed = (seen[2] != stripes).flatten(1).sum(1)
    side = side_of(1, 60, 0.8, 8, 8)
    assert side == 4
    assert bool((changed <= 3 * side**2).all())
    assert int(changed.max()) > side**2 / 2


def test_square_is_for_images():
    model, x = nn.Linear(4, 2), torch.rand(3, 4, generator=rng())
    y = model(x).argmax(1)
    with pytest.raises(ValueError, match=r"Square needs images \(B, C, H, W\)"):
        Square(0.1)(model, x, y, rng())


def test_an_ensemble_is_never_weaker_than_its_first_member_and_gains_from_others():
    model = Stepped().double().eval()
    x, y = data(model, 120)
    first = FGSM(0.03)
    alone, square = (a(model, x, y, rng()) for a in (first, Square(0.03, queries=50)))
    both = AttackEnsemble([first, Square(0.03, queries=50)])(model, x, y, rng())
    turned = [model(z).argmax(1) != y for z in (alone, square, both)]
    assert bool((turned[0] <= turned[2]).all())
    assert int(turned[2].sum()) > int(turned[0].sum())
