"""Estimated label noise: closed forms, the bootstrap against one that does everything anew, and coverage."""

import numpy as np
import pytest
import torch
from label_data import noisy, softmax

from weathered.audit.labels import noise as noise_module
from weathered.audit.labels.confident import calibrate, confident_joint, confident_learning
from weathered.audit.labels.noise import effective_wilson, estimate_noise
from weathered.stats import proportion_interval


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_closed_form():
    p = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2 + [[0.1, 0.9]] * 10)
    y = np.repeat([0, 1], 10)
    learnt = confident_learning(p, y)
    assert learnt.joint.tolist() == [[8, 2], [0, 10]]
    noise = estimate_noise(learnt, p, seeded())
    assert noise.rate.value == pytest.approx(0.1)
    assert noise.rate.n == 20
    assert noise.inverse.value == pytest.approx(np.array([[0.8, 0.2], [0, 1]]))
    assert noise.transition.value == pytest.approx(np.array([[1, 0], [2 / 12, 10 / 12]]))


@pytest.mark.parametrize("num_classes", [2, 7])
def test_matrices_are_distributions_inside_their_bounds(num_classes):
    p, y, _ = noisy(500, num_classes)
    noise = estimate_noise(confident_learning(p, y), p, seeded(), resamples=20)
    for shares in (noise.transition, noise.inverse):
        assert shares.value.sum(axis=1) == pytest.approx(np.ones(num_classes))
        assert (shares.low >= 0).all()
        assert (shares.low <= shares.value).all()
        assert (shares.value <= shares.high).all()
        assert (shares.high <= 1).all()


def test_the_two_directions_obey_the_rule_of_bayes():
    p, y, _ = noisy(500, 4)
    learnt = confident_learning(p, y)
    noise = estimate_noise(learnt, p, seeded(), resamples=2)
    joint = calibrate(learnt.joint, learnt.class_counts) / len(y)
    assert noise.inverse.value * joint.sum(axis=1)[:, None] == pytest.approx(joint)
    assert noise.transition.value.T * joint.sum(axis=0) == pytest.approx(joint)


@pytest.mark.parametrize("argmax_over", ["confident", "all"])
@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0])
def test_resamples_equal_those_that_count_anew(monkeypatch, argmax_over, sharpness):
    """The same draws, but thresholds, confident classes and joint from all of p; a sample drawn twice counts twice."""
    p, y, _ = noisy(150, 5, sharpness=sharpness, seed=2)
    learnt, weights = confident_learning(p, y, argmax_over=argmax_over), []
    rng = seeded(5)
    for _ in range(12):
        weights.append(np.bincount(torch.randint(150, (150,), generator=rng).numpy(), minlength=150))
    rates, inverse = [], []
    for weight in weights:
        rows = np.repeat(np.arange(150), weight)
        anew = confident_learning(p[rows], y[rows], argmax_over=argmax_over)
        joint = calibrate(confident_joint(anew.labels, anew.classes, 5), anew.class_counts)
        rates.append(1 - joint.trace() / joint.sum())
        inverse.append(joint / joint.sum(axis=1, keepdims=True))
    seen = {}

    def keep(share, variance, *rest):
        seen[share.shape, len(seen)] = variance
        return effective_wilson(share, variance, *rest)

    monkeypatch.setattr(noise_module, "effective_wilson", keep)
    estimate_noise(learnt, p, seeded(5), resamples=12, block_rows=7)
    rate, _, given = seen.values()
    assert rate == pytest.approx(np.var(rates), abs=1e-12)
    assert given == pytest.approx(np.var(inverse, axis=0), abs=1e-12)


def test_blocks_and_repeats_give_the_same_bits(tmp_path):
    p, y, _ = noisy(300, 6)
    np.save(tmp_path / "p.npy", p)
    learnt = confident_learning(p, y)
    one = estimate_noise(learnt, p, seeded(), resamples=10)
    for block_rows in (1, 11, 300):
        other = estimate_noise(learnt, tmp_path / "p.npy", seeded(), resamples=10, block_rows=block_rows)
        assert other.rate == one.rate
        for mine, expected in ((other.transition, one.transition), (other.inverse, one.inverse)):
            assert np.array_equal(mine, expected)


def test_a_class_without_samples_has_no_known_shares():
    p, y, _ = noisy(300, 4)
    y = np.where(y == 2, 1, y)
    noise = estimate_noise(confident_learning(p, y), p, seeded(), resamples=5)
    assert np.isnan(noise.inverse.value[2]).all()
    assert np.isnan(noise.inverse.low[2]).all()
    assert np.isnan(noise.transition.high[2]).all()
    assert np.isfinite(noise.inverse.value[[0, 1, 3]]).all()
    assert np.isfinite(noise.rate).all()


def test_effective_wilson_is_wilson_for_the_variance_of_a_share():
    share, n = np.array([0.3, 0.05, 0.0, 1.0]), 80
    low, high = effective_wilson(share, share * (1 - share) / n, np.array(80.0), 10_000)
    for k, value in enumerate(share):
        expected = proportion_interval(value * n, n)
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high))


def test_interval_covers_what_all_samples_of_the_population_would_give():
    """Seeds are samples of 400 from one population; what the method estimates on 200,000 is taken for its value."""

    def draw(n: int, seed: int):
        rng = np.random.default_rng(seed)
        true = rng.integers(3, size=n)
        given = np.where(rng.random(n) < 0.3, rng.integers(3, size=n), true)
        logits = rng.normal(size=(n, 3))
        logits[np.arange(n), true] += 2
        p = softmax(logits)
        return confident_learning(p, given), p

    population, p = draw(200_000, 12345)
    truth = estimate_noise(population, p, seeded(), resamples=2)
    rate, cells, runs = 0, np.zeros((3, 3)), 60
    for seed in range(runs):
        learnt, p = draw(400, seed)
        noise = estimate_noise(learnt, p, seeded(seed), resamples=60)
        rate += noise.rate.low <= truth.rate.value <= noise.rate.high
        cells += (noise.transition.low <= truth.transition.value) & (truth.transition.value <= noise.transition.high)
    assert rate / runs >= 0.87
    assert (cells / runs).min() >= 0.83
    assert (cells / runs).mean() >= 0.9


def test_more_samples_narrow_the_interval():
    wide, narrow = (
        estimate_noise(confident_learning(p, y), p, seeded(), resamples=60).rate
        for p, y, _ in (noisy(500, seed=3), noisy(8000, seed=3))
    )
    assert 2.5 < (wide.high - wide.low) / (narrow.high - narrow.low) < 6


def test_one_resample_is_refused():
    p, y, _ = noisy(20)
    with pytest.raises(ValueError, match="resamples"):
        estimate_noise(confident_learning(p, y), p, seeded(), resamples=1)
