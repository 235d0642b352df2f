"""Class-difficulty balancing: its limits, its exponents, what it draws, and what it reads of validation data."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.weighting.cdb import CDB
from weathered.weighting.cdb_sampling import CDBSampling
from weathered.weighting.difficulty import exponent, shares

DIFFICULTY = torch.tensor([0.1, 0.4, 0.9, 0.2], dtype=torch.float64)
SETTINGS = Settings(epochs=3, batch_size=25, lr=0.05)
DIFFICULTIES = st.lists(st.floats(0.01, 1), min_size=2, max_size=8).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def part(difficulty=DIFFICULTY, **options) -> CDB:
    made = CDB(len(difficulty), **options)
    made.update(difficulty)
    return made


def make(small_digits, **parts) -> Run:
    rows = torch.arange(len(small_digits))
    train, validation = small_digits.select(rows[:150]), small_digits.select(rows[150:])
    return Run(
        lambda seed: build_model("mlp:width=16", train, seed=seed),
        train,
        validation=validation,
        settings=SETTINGS,
        **parts,
    )


@pytest.mark.parametrize("tau", [0.0, 1.0, "dynamic", "released"])
@pytest.mark.parametrize("value", [0.3, 1.0])
def test_equal_difficulties_weigh_one_exactly_and_draw_classes_alike(tau, value):
    made = part(torch.full((4,), value), tau=tau)
    assert torch.equal(made.class_weights, torch.ones(4, dtype=torch.float64))
    sampler = CDBSampling(4, tau)
    sampler.update(torch.full((4,), value))
    labels = torch.arange(4).repeat_interleave(torch.tensor([8, 4, 2, 1]))
    drawn = torch.zeros(4, dtype=torch.float64).index_add_(0, labels, sampler.weights(labels, 0.5))
    assert_close(drawn, torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.3, 1.0])
def test_equal_difficulties_weigh_one_exactly_for_any_number_of_classes(value):
    for classes in range(2, 200):
        weights = part(torch.full((classes,), value)).class_weights
        assert torch.equal(weights, torch.ones(classes, dtype=torch.float64))


@pytest.mark.parametrize("weighted_mean", [False, True])
def test_before_the_first_measurement_losses_stay_bit_for_bit(weighted_mean):
    made = CDB(49, weighted_mean=weighted_mean)
    for size in range(1, 200):
        losses = torch.rand(size, generator=generator(size))
        assert torch.equal(made(losses, torch.arange(size) % 49, 0.0) * losses, losses)


@given(DIFFICULTIES)
def test_tau_zero_weighs_one(difficulty):
    assert_close(part(difficulty, tau=0.0).class_weights, torch.ones(len(difficulty), dtype=torch.float64))


@given(DIFFICULTIES, st.floats(0, 5))
def test_weights_have_mean_one_and_ratios_of_powers(difficulty, tau):
    w = part(difficulty, tau=tau).class_weights
    assert float(w.sum()) == pytest.approx(len(w), abs=1e-6)
    ratios = w[:, None] / w[None]
    assert_close(ratios, (difficulty[:, None] / difficulty[None]) ** tau, rtol=1e-6, atol=1e-9)


def test_a_large_tau_gives_all_weight_to_the_hardest_and_ties_share():
    assert_close(part(tau=500.0).class_weights, torch.tensor([0.0, 0, 4, 0]).double())
    tied = part(torch.tensor([0.9, 0.1, 0.9, 0.2]), tau=500.0)
    assert_close(tied.class_weights, torch.tensor([2.0, 0, 2, 0]).double())


def test_a_factor_of_all_difficulties_changes_nothing():
    assert_close(part(0.5 * DIFFICULTY, tau=1.7).class_weights, part(tau=1.7).class_weights)


def test_the_published_exponent():
    def published(*accuracy: float) -> float:
        return exponent(1 - torch.tensor(accuracy, dtype=torch.float64), "dynamic")

    assert published(0.0, 0.0) == pytest.approx(0.5379, abs=1e-4)
    assert published(0.5, 0.5) == pytest.approx(0.9902, abs=1e-4)
    assert published(1.0, 0.08) == pytest.approx(1.9999, abs=1e-4)
    rising = [published(high, 0.1) for high in (0.1, 0.2, 0.4, 0.8, 1.0)]
    assert all(a < b <= 2 for a, b in itertools.pairwise(rising))
    assert exponent(1 - torch.tensor([0.5, 0.5]).double(), "released") == pytest.approx(1 / (1 + math.exp(-50 / 51)))


def test_reductions_differ_by_the_weight_of_a_class_alone():
    made, mean = part(tau=1.0), part(tau=1.0, weighted_mean=True)
    losses = torch.rand(6, generator=generator(0), dtype=torch.float64)
    one = torch.full((6,), 2)
    assert_close((made(losses, one, 0.5) * losses).mean(), made.class_weights[2] * losses.mean())
    assert_close((mean(losses, one, 0.5) * losses).mean(), losses.mean())
    logits, labels = torch.randn(6, 4, generator=generator(1), dtype=torch.float64), torch.tensor([0, 1, 2, 3, 2, 1])
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = F.cross_entropy(logits, labels, weight=made.class_weights)
    assert_close((mean(losses, labels, 0.5) * losses).mean(), expected)
    assert not torch.allclose((made(losses, labels, 0.5) * losses).mean(), expected)


def test_the_sampler_draws_classes_by_their_difficulty():
    sampler = CDBSampling(4, 1.5)
    sampler.update(DIFFICULTY)
    labels = torch.arange(4).repeat_interleave(torch.tensor([500, 100, 20, 5]))
    weights = sampler.weights(labels, 0.0)
    wanted = shares(DIFFICULTY, 1.5)
    for c in range(4):
        assert_close(weights[labels == c], (wanted[c] / (labels == c).sum()).expand(int((labels == c).sum())))
    drawn = labels[torch.multinomial(weights, 100_000, True, generator=generator(0))].bincount(minlength=4) / 100_000
    assert_close(drawn.double(), wanted, atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="class 3 has no training row, so it cannot be drawn"):
        sampler.weights(labels[labels < 3], 0.0)


def test_the_first_epoch_is_plain_training_bit_for_bit_and_the_next_is_not(small_digits):
    plain, weighed = make(small_digits), make(small_digits, reweight=CDB(10))
    steps = plain.steps_per_epoch
    for run in (plain, weighed):
        fit(run, max_steps=steps)
    same = [p.equal(q) for p, q in zip(plain.model.parameters(), weighed.model.parameters(), strict=True)]
    assert all(same)
    for run in (plain, weighed):
        fit(run, max_steps=steps)
    same = [p.equal(q) for p, q in zip(plain.model.parameters(), weighed.model.parameters(), strict=True)]
    assert not any(same)


def test_difficulty_is_the_error_on_validation_data_and_nothing_else(small_digits):
    made = CDB(10, every=2)
    run = make(small_digits, reweight=made)
    fit(run, max_steps=run.steps_per_epoch)
    validation = run.validation
    assert validation is not None
    correct = run.predict(validation).argmax(1) == validation.labels
    expected = [1 - float(correct[validation.labels == c].double().mean()) for c in range(10)]
    assert made.difficulty.tolist() == pytest.approx(expected)
    first = made.difficulty.clone()
    fit(run, max_steps=run.steps_per_epoch)
    assert torch.equal(made.difficulty, first)
    fit(run)
    assert not torch.equal(made.difficulty, first)
    assert run.model.training


def test_perfect_absent_and_floored_classes():
    with pytest.warns(UserWarning, match="no class has an error"):
        perfect = part(torch.zeros(4))
    assert torch.equal(perfect.class_weights, torch.ones(4, dtype=torch.float64))
    one = part(torch.tensor([0.0, 0.5, 0.5, 0.5]))
    assert float(one.class_weights[0]) == 0
    assert one.class_weights.isfinite().all()
    labels = torch.tensor([0, 0, 1, 1, 1])
    with pytest.warns(UserWarning, match=r"keep their difficulty: \[2, 3\]"):
        found = part().measured(torch.tensor([True, True, True, False, False]), labels)
    assert found.tolist() == pytest.approx([0, 2 / 3, 0.9, 0.2])
    floored = CDB(2, floor=True).measured(torch.tensor([True, True, True, False, False]), labels)
    assert floored.tolist() == pytest.approx([1 / 4, 2 / 3])
    with pytest.warns(UserWarning, match=r"keep their difficulty: \[2, 3\]"):
        kept = part(floor=True).measured(torch.tensor([True, True, True, False, False]), labels)
    assert kept.tolist() == pytest.approx([1 / 4, 2 / 3, 0.9, 0.2])


@given(st.integers(1, 5), st.integers(0, 1000))
def test_difficulty_knows_neither_the_order_nor_the_number_of_rows(times, seed):
    rng = generator(seed, "rows")
    labels = torch.cat([torch.arange(4), torch.randint(4, (20,), generator=rng)])
    correct = torch.rand(24, generator=rng) < 0.6
    # the rows of class 2 come again and again, and all of them in another order
    again = torch.arange(24).repeat_interleave(torch.where(labels == 2, times, 1))
    again = again[torch.randperm(len(again), generator=rng)]
    expected = CDB(4).measured(correct, labels)
    assert_close(CDB(4).measured(correct[again], labels[again]), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("slot", ["reweight", "sampler"])
def test_resumes_bit_for_bit(small_digits, slot):
    def run():
        return make(small_digits, **{slot: CDB(10) if slot == "reweight" else CDBSampling(10)})

    whole, half = fit(run()), fit(run(), max_steps=9)
    resumed = run()
    resumed.load_state_dict(half.state_dict())
    fit(resumed)
    assert all(p.equal(q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_bad_inputs(small_digits):
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"difficulty must be in \[0, 1\], got .* for class 1"):
            part(torch.tensor([0.5, bad, 0.5]))
    labels = torch.tensor([0, 1, 4])
    for use in (
        lambda: CDB(3)(torch.ones(3), labels, 0.5),
        lambda: CDB(3).measured(torch.ones(3).bool(), labels),
        lambda: CDBSampling(3).weights(labels, 0.5),
    ):
        with pytest.raises(ValueError, match=r"labels must be in \[0, 2\] for 3 class.* got 4"):
            use()
    with pytest.raises(ValueError, match="one number for each class, got shape"):
        CDB(3).update(torch.ones(4))
    for options, message in (
        ({"tau": -1.0}, "tau must be >= 0"),
        ({"tau": "sometimes"}, "got 'sometimes'"),
        ({"every": 0}, "every must be at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            CDB(**{"num_classes": 4, **options})
    with pytest.raises(Incompatible, match="--validation 0.1"):
        Run(build_model("mlp", small_digits), small_digits, reweight=CDB(10))
