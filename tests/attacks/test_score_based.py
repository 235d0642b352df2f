"""Attacks by scores alone: what they ask, what they move, and how they read ranks."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered.attacks.astfocus import AstFocus
from weathered.attacks.attack_ensemble import AttackEnsemble
from weathered.attacks.estimate import exponential_margin, rank_gradient, ranks, shared_reward, targeted_losses
from weathered.attacks.fgsm import FGSM
from weathered.attacks.nes import NES
from weathered.attacks.random_focus import RandomFocus
from weathered.attacks.score_based import WINDOW, Pace, Victim
from weathered.core.errors import NonFinite
from weathered.core.rng import generator

EPSILON, QUERIES, SAMPLES = 0.06, 70, 6
COMMON = {"epsilon": EPSILON, "queries": QUERIES, "samples": SAMPLES, "step_size": 0.04}
SQUARES = {"patch": 3, "grid": 3, "frames": (2, 4)}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attacks(**changes):
    common = {**COMMON, **changes}
    return {
        "nes": NES(**common),
        "random-focus": RandomFocus(**common, **SQUARES),
        "astfocus": AstFocus(**common, **SQUARES, hidden=4, epochs=1),
    }


EVERY = ["nes", "random-focus", "astfocus"]
WEIGHTS = torch.randn(5 * 2 * 6 * 6, 3, generator=rng(7)) / 5


def clips(size: int = 6) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(size, 5, 2, 6, 6, generator=rng(1))


class Counted:
    """A function of NumPy arrays, which knows no gradient, and what it was asked."""

    def __init__(self):
        self.count, self.seen = 0, []

    def __call__(self, x):
        values = np.asarray(x)
        assert values.min() >= 0
        assert values.max() <= 1
        self.count += len(values)
        self.seen.append(values.copy())
        return 4 * (values.reshape(len(values), -1) - 0.5) @ WEIGHTS.numpy()


def labels(x: torch.Tensor) -> torch.Tensor:
    return ((x.flatten(1) - 0.5) @ WEIGHTS).argmax(1)


@pytest.mark.parametrize("which", EVERY)
@pytest.mark.parametrize("targeted", [False, True])
def test_queries_are_those_the_victim_saw_and_successes_are_real(which, targeted):
    x = clips()
    y, victim = labels(x), Counted()
    y[:2] = (y[:2] + 1) % 3
    attack = attacks(targeted=targeted)[which]
    target = (y + 1) % 3
    found = attack.run(victim, x, y, rng(), target=target if targeted else None)
    assert int(found.queries.sum()) == victim.count
    assert int(found.queries.max()) <= QUERIES
    assert found.queries[:2].tolist() == [1, 1]
    assert found.skipped.tolist() == [True] * 2 + [False] * 4
    assert not found.success[:2].any()
    assert torch.equal(found.x[:2], x[:2])
    turned = labels(found.x) == target if targeted else labels(found.x) != y
    assert torch.equal(turned[2:], found.success[2:])
    assert found.success.any()
    assert_close(found.perturbation, 255 * (found.x - x).abs().flatten(1).double().mean(1))


def test_every_step_stays_in_the_ball_and_in_the_squares_chosen_so_far():
    x = clips(1)
    x[0, 0, 0, :3], x[0, 0, 1, :3] = 0.0, 1.0
    y, victim = labels(x), Counted()
    # too short a way to get there, so that it goes on
    attack = RandomFocus(epsilon=0.003, queries=400, samples=2, step_size=1.0, **SQUARES)
    focus = attack.focus(x[0], rng())
    chosen: list[torch.Tensor] = []

    class Noted:
        def choose(self):
            chosen.append(focus.choose())
            return chosen[-1]

        def learn(self, reward):
            focus.learn(reward)

    attack.focus = lambda x, rng: Noted()
    found = attack.run(victim, x, y, rng())
    assert not found.success.any()
    steps = [torch.tensor(batch) for batch in victim.seen if len(batch) == 1][1:]
    assert len(steps) == len(chosen) >= 10
    union = torch.zeros_like(chosen[0])
    for step, mask in zip(steps, chosen, strict=True):
        assert 2 * 3 * 3 * 2 <= int(mask.sum()) <= 4 * 3 * 3 * 2
        union |= mask
        assert float((step - x).abs().max()) <= 0.003 + 1e-6
        assert not (step - x)[0][~union].any()
    assert (steps[-1] - x)[0][union].abs().max() > 0.002


@pytest.mark.parametrize("which", EVERY)
def test_a_victim_is_never_differentiated_and_draws_are_its_own(which):
    x = clips()
    y = labels(x)

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(WEIGHTS.clone())
            self.drop = nn.Dropout(0.5)

        def forward(self, z):
            assert not torch.is_grad_enabled()
            assert not z.requires_grad
            return self.drop(4 * (z.flatten(1) - 0.5)) @ self.weight

    model, state = Detached().train(), torch.random.get_rng_state()
    attack = attacks()[which]
    first = attack.run(model, x, y, rng(3))
    assert model.training
    assert model.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    again = attack.run(Counted(), x, y, rng(3))
    assert torch.equal(first.queries, again.queries)
    assert_close(first.x, again.x)
    assert torch.equal(attack(model, x, y, rng(3)), first.x)
    assert not torch.equal(attack.run(model, x, y, rng(4)).queries, first.queries)
    # what is found for one does not depend on the others
    few = attack.run(model, x[:3], y[:3], rng(3))
    assert torch.equal(few.queries, first.queries[:3])
    assert_close(few.x, first.x[:3])


def test_square_of_the_whole_frame_in_all_frames_is_nes():
    x = clips(4)
    whole = RandomFocus(**COMMON, patch=6, grid=1, frames=(5, 5)).focus(x[0], rng())
    assert bool(whole.choose().all())
    assert torch.equal(whole.choose(), NES(**COMMON).focus(x[0], rng()).choose())


def test_nes_takes_images_and_the_others_refuse_them():
    images = torch.rand(3, 1, 4, 4, generator=rng())
    victim = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    y = victim(images).argmax(1)
    assert NES(**COMMON).run(victim, images, y, rng()).x.shape == images.shape
    for name in EVERY[1:]:
        with pytest.raises(ValueError, match=r"needs clips \(B, T, C, H, W\), T >= 2"):
            attacks()[name].run(victim, images, y, rng())


def test_ranks_share_places_among_equals():
    assert_close(ranks(torch.tensor([3.0, 1.0, 2.0])), torch.tensor([1.0, 0.0, 0.5]).double())
    assert_close(ranks(torch.tensor([5.0, 1.0, 5.0, 9.0])), torch.tensor([0.5, 0.0, 0.5, 1.0]).double())


def test_the_estimate_sees_ranks_alone_and_equal_losses_give_nothing():
    noise, none = torch.randn(20, 50, generator=rng(), dtype=torch.float64), torch.zeros(40, dtype=torch.bool)
    losses = torch.randn(40, generator=rng(1), dtype=torch.float64)
    plain = rank_gradient(noise, losses, none)
    for change in (torch.exp, lambda v: 7 * v - 3, torch.sigmoid):
        assert torch.equal(rank_gradient(noise, change(losses), none), plain)
    assert not rank_gradient(noise, torch.ones(40), none).any()
    # closed form: rank-weighted sum over both signs
    weights = losses.argsort().argsort().double() / 39
    assert_close(plain, weights @ torch.cat([noise, -noise]))
    fooled = none.clone()
    fooled[[0, 5]] = True
    top = torch.where(fooled, 100.0, losses)
    assert_close(rank_gradient(noise, losses, fooled), rank_gradient(noise, top, none))
    with pytest.raises(ValueError, match="two losses for each of 20"):
        rank_gradient(noise, losses[:39], none[:39])


def test_the_estimate_of_a_linear_loss_grows_with_samples_over_values():
    """Cosine with the slope: about sqrt(3 n / (pi d)) of ranks, for d much larger than n; 4 times n doubles it."""

    def cosine(samples: int, values: int) -> float:
        slope, found = torch.randn(values, generator=rng(999)), []
        for seed in range(30):
            noise = torch.randn(samples // 2, values, generator=rng(seed))
            ahead = noise @ slope
            estimate = rank_gradient(noise, torch.cat([ahead, -ahead]), torch.zeros(samples, dtype=torch.bool))
            found.append(float(torch.cosine_similarity(estimate, slope, dim=0)))
        return sum(found) / len(found)

    base = cosine(20, 4000)
    assert base > 0.04
    assert cosine(80, 4000) / base == pytest.approx(2, rel=0.2)
    assert cosine(20, 1000) / base == pytest.approx(2, rel=0.2)


def test_a_step_changes_values_by_about_the_root_of_samples_over_twelve():
    found = rank_gradient(
        torch.randn(30, 5000, generator=rng()), torch.randn(60, generator=rng(1)), torch.zeros(60, dtype=torch.bool)
    )
    assert float(found.square().mean().sqrt()) == pytest.approx(math.sqrt(60 / 12), rel=0.15)


def test_rewards_have_the_sign_of_the_gain():
    p, better = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.5, 0.4, 0.1]).double()
    assert shared_reward(p, p, 0) == shared_reward(p, p, 0, 1) == 0
    assert shared_reward(p, better, 0) > 0 > shared_reward(better, p, 0)
    assert shared_reward(p, better, 0, 1) > 0 > shared_reward(better, p, 0, 1)
    old = math.exp(0.3) - math.exp(0.6)
    new = math.exp(0.4) - math.exp(0.5)
    assert exponential_margin(p, 0) == pytest.approx(old)
    assert shared_reward(p, better, 0) == pytest.approx((new - old) / (2 * abs(old)))
    assert shared_reward(p, better, 0, 1) == pytest.approx(math.exp(0.2) - 1)
    # likelier classes other than the target are no gain for it
    assert shared_reward(p, torch.tensor([0.6, 0.1, 0.3]).double(), 0, 1) < 0


def test_targeted_losses_weigh_the_target_most():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]]).double()
    expected = [-0.1 * math.log(a) + 0.9 * math.log(b) for a, b in ((0.7, 0.2), (0.5, 0.4))]
    assert_close(targeted_losses(p, 0, 1), torch.tensor(expected).double())


def test_the_pace_halves_after_a_window_and_gives_up_after_its_patience():
    pace = Pace(0.8, 0.3, patience=3 * WINDOW, progress=0.0)
    assert all(pace.goes_on(-1.0) for _ in range(WINDOW))
    assert pace.step_size == 0.4
    assert pace.goes_on(0.5)
    assert all(pace.goes_on(0.5) for _ in range(3 * WINDOW - 1))
    assert pace.step_size == 0.3
    assert not pace.goes_on(0.5)


def test_without_hope_it_gives_up_before_the_budget_and_one_estimate_must_fit():
    x = clips(2)
    victim = Counted()

    def constant(z):
        victim(z)
        return np.tile([1.0, 0.0], (len(z), 1))

    found = NES(epsilon=0.1, queries=20_000, samples=2).run(constant, x, torch.zeros(2).long(), rng())
    assert found.queries.tolist() == [1 + 3 * 160] * 2
    assert not found.success.any()
    assert int(found.queries.sum()) == victim.count
    none = NES(epsilon=0.1, queries=10, samples=10).run(constant, x, torch.zeros(2).long(), rng())
    assert none.queries.tolist() == [1, 1]
    assert torch.equal(none.x, x)


def test_scores_of_sure_networks_can_be_told_apart():
    answers = Victim(lambda z: z)(torch.tensor([[40.0, 0.0], [41.0, 0.0]]))
    assert answers[0, 1] > answers[1, 1] > 0
    # log-probabilities stand for probabilities
    p = torch.tensor([[0.2, 0.7, 0.1]])
    assert_close(Victim(torch.log)(p), p.double())


def test_as_a_member_of_an_ensemble_it_turns_what_is_left():
    x = clips(12)
    model = nn.Sequential(nn.Flatten(), nn.Linear(360, 3))
    with torch.no_grad():
        model[1].weight.copy_(4 * WEIGHTS.T)
        model[1].bias.copy_(-2 * WEIGHTS.sum(0))
    y = labels(x)
    weak, both = (
        AttackEnsemble(members) for members in ([FGSM(0.002)], [FGSM(0.002), NES(0.002, queries=300, samples=10)])
    )
    assert both.passes() == (301, 1)
    kept = [int((labels(attack(model, x, y, rng())) == y).sum()) for attack in (weak, both)]
    assert kept[1] <= kept[0]
    far = AttackEnsemble([FGSM(EPSILON), NES(**COMMON)])(model, x, y, rng())
    assert int((labels(far) == y).sum()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, r"epsilon must be in \(0, 1\] for NES, got 0"),
        ({"samples": 7}, "samples must be even"),
        ({"samples": 0}, "samples must be at least 2"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"sigma": 0.0}, "sigma must be > 0"),
        ({"sigma": math.inf}, "sigma must be > 0"),
        ({"step_size": 0.0}, "step sizes must be > 0"),
        ({"step_size": 0.1, "min_step_size": 0.2}, "the least at most the first, got 0.2 and 0.1"),
        ({"norm": "l2"}, "NES works in the norm linf"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NES(**arguments)


def test_defaults_are_those_of_the_paper():
    plain, targeted = NES(), NES(targeted=True)
    assert (plain.epsilon, plain.queries, plain.samples, plain.sigma) == (0.05, 15_000, 60, 1e-3)
    assert (plain.step_size, plain.min_step_size) == (0.01, 0.001)
    assert (targeted.queries, targeted.step_size, targeted.min_step_size) == (30_000, 0.03, 0.0024)


def test_wrong_inputs_labels_and_targets_are_refused():
    x = clips(2)
    y = labels(x)
    attack, aimed = NES(**COMMON), NES(**COMMON, targeted=True)
    for make, message in (
        (lambda: attack.run(Counted(), 2 * x, y, rng()), "leave normalisation to the model"),
        (lambda: attack.run(Counted(), x, y.float(), rng()), "y must hold 2 labels"),
        (lambda: attack.run(Counted(), x, y + 3, rng()), r"labels must be in \[0, 2\]"),
        (lambda: attack.run(Counted(), x, y, rng(), target=(y + 1) % 3), "pass targeted=True"),
        (lambda: aimed.run(Counted(), x, y, rng(), target=y), "must differ from the label"),
        (lambda: aimed.run(Counted(), x, y, rng(), target=y[:1]), "target must hold 2 classes"),
        (lambda: aimed.run(Counted(), x, y, rng(), target=y + 5), r"targets must be in \[0, 2\]"),
        (lambda: attack.run(lambda z: torch.zeros(len(z)), x, y, rng()), "must return logits"),
        (lambda: RandomFocus(patch=7).run(Counted(), x, y, rng()), r"patch must be in \[1, 6\] for 6x6 frames, got 7"),
        (lambda: RandomFocus(frames=(6, 8)).run(Counted(), x, y, rng()), "frames must be at most 5"),
        (lambda: RandomFocus().run(Counted(), x[:, :1], y, rng()), "T >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(NonFinite, match="logits are not finite"):
        attack.run(lambda z: torch.full((len(z), 2), math.nan), x, y, rng())


def test_no_inputs_are_no_error():
    found = attacks()["astfocus"].run(Counted(), clips()[:0], torch.zeros(0).long(), generator(0, "none"))
    assert found.x.shape == (0, 5, 2, 6, 6)
