"""Randomized smoothing against classifiers whose answer is known: half-spaces, constants and coins."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from weathered.certify.smoothing import (
    RandomizedSmoothing,
    clopper_pearson_lower,
)

SIGMA = 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Halfspace(nn.Module):
    """Class 1 where the sum of the pixels, over their root number, exceeds `offset`: a plane with unit normal."""

    def __init__(self, offset: float):
        super().__init__()
        self.offset = offset

    def distance(self, x):
        return x.flatten(1).sum(1) / math.sqrt(x[0].numel()) - self.offset

    def forward(self, x):
        return torch.stack([-self.distance(x), self.distance(x)], 1)


class Constant(nn.Module):
    def __init__(self, logits: list[float]):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


class Recorder(nn.Module):
    """Keeps what it was given; the logits are the first three pixels."""

    def __init__(self):
        super().__init__()
        self.inputs: list[torch.Tensor] = []

    def forward(self, x):
        self.inputs.append(x.clone())
        return x.flatten(1)[:, :3]


def test_linear_classifier_at_distance_sigma_is_certified_within_three_per_cent():
    """f = 1[w.x + b > 0] has p = Phi(d / sigma) with d the distance to its plane, so sigma Phi^-1(p) = d exactly."""
    x = torch.full((2, 1, 2, 2), 0.75)
    x[1] = 0.25
    plane = Halfspace(offset=1.0)  # both at distance 0.5, on either side
    assert plane.distance(x).tolist() == [0.5, -0.5]
    result = RandomizedSmoothing(SIGMA, n=100_000, batch_size=10_000).certify(plane, x, generator())
    assert result.labels.tolist() == [1, 0]
    assert (result.radii <= 0.5).all()
    assert (result.radii >= 0.97 * 0.5).all()


def test_radii_exceed_the_true_distance_at_most_with_probability_alpha():
    images, alpha = 2000, 0.1
    x = torch.full((images, 1, 2, 2), 0.65)
    plane = Halfspace(offset=1.0)
    smoothing = RandomizedSmoothing(SIGMA, n0=20, n=200, alpha=alpha, batch_size=50_000)
    result = smoothing.certify(plane, x, generator(1))
    failures = float(((result.labels == 1) & (result.radii > plane.distance(x)) | (result.labels == 0)).double().mean())
    assert failures <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / images)
    assert failures > alpha / 3  # the bound is not vacuous


@pytest.mark.parametrize("logits", [[0.0, 3.0, 1.0], [1.0]])
def test_constant_classifier_reaches_the_ceiling(logits):
    smoothing = RandomizedSmoothing(SIGMA, n0=5, n=1000)
    x = torch.rand(3, 1, 4, 4, generator=generator())
    result = smoothing.certify(Constant(logits), x, generator())
    best = int(np.argmax(logits))
    assert result.labels.tolist() == [best] * 3
    assert result.counts.tolist() == [1000] * 3
    assert result.radii.tolist() == pytest.approx([SIGMA * stats.norm.ppf(0.001 ** (1 / 1000))] * 3, rel=1e-9)
    assert smoothing.predict(Constant(logits), x, generator()).tolist() == [best] * 3


def test_coin_flip_abstains_with_probability_one_minus_alpha():
    """On the plane itself each draw is a fair coin, and any decision would be a failure of the level alpha."""
    images, alpha = 3000, 0.05
    x = torch.full((images, 1, 2, 2), 0.5)
    smoothing = RandomizedSmoothing(SIGMA, n0=10, n=101, alpha=alpha, batch_size=50_000)
    slack = 3 * math.sqrt(alpha * (1 - alpha) / images)
    result = smoothing.certify(Halfspace(1.0), x, generator(2))
    assert float((result.labels == -1).double().mean()) >= 1 - alpha - slack
    assert (result.radii[result.labels == -1] == 0).all()
    labels = smoothing.predict(Halfspace(1.0), x, generator(2))
    assert float((labels == -1).double().mean()) >= 1 - alpha - slack
    assert (labels != -1).any()
    assert (result.labels != -1).any()


def test_predict_follows_the_exact_binomial_test():
    n, alpha = 60, 0.05
    x = torch.linspace(0.3, 0.7, 41)[:, None].expand(41, 4).clone()
    smoothing = RandomizedSmoothing(SIGMA, n=n, alpha=alpha, batch_size=97)
    plane = Halfspace(1.0)
    labels = smoothing.predict(plane, x, generator(3))
    watcher = Watcher(plane)
    assert torch.equal(smoothing.predict(watcher, x, generator(3)), labels)
    votes = torch.cat(watcher.votes).view(41, n)
    for row, label in zip(votes, labels.tolist(), strict=True):
        ones = int(row.sum())
        decisive = stats.binomtest(max(ones, n - ones), n).pvalue <= alpha
        assert label == (int(2 * ones > n) if decisive else -1)
    assert len(labels.unique()) == 3


class Watcher(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.votes = model, []

    def forward(self, x):
        logits = self.model(x)
        self.votes.append(logits.argmax(1))
        return logits


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 150, 150), (5,)])
def test_neither_batch_size_nor_company_changes_a_decision(shape, early_stop):
    x = torch.rand(6, *shape, generator=generator(4))
    model = Halfspace(offset=0.5 * math.sqrt(x[0].numel()))

    def certify(batch_size, rows):
        smoothing = RandomizedSmoothing(SIGMA, n0=7, n=33, alpha=0.2, batch_size=batch_size, early_stop=early_stop)
        return smoothing.certify(model, x[rows], generator(5), index=torch.tensor(rows))

    reference = certify(1000, [0, 1, 2, 3, 4, 5])
    default = RandomizedSmoothing(SIGMA, n0=7, n=33, alpha=0.2, early_stop=early_stop).certify(model, x, generator(5))
    assert torch.equal(default.counts, reference.counts)
    for batch_size, rows in [(1, [0, 1, 2, 3, 4, 5]), (10, [5, 2]), (66, [3]), (33, [4, 0, 1])]:
        result = certify(batch_size, rows)
        assert torch.equal(result.labels, reference.labels[rows])
        assert torch.equal(result.radii, reference.radii[rows])
        assert torch.equal(result.counts, reference.counts[rows])


def test_early_stop_changes_no_decision_and_saves_draws():
    """Given up only when more than n - k* votes are against, k* the least count that does not abstain."""
    x = torch.linspace(0.2, 0.8, 60)[:, None].expand(60, 4).clone()
    options = {"n0": 1, "n": 20_000, "alpha": 0.05, "batch_size": 500}
    plane = Halfspace(1.0)
    watchers = [Watcher(plane), Watcher(plane)]
    full = RandomizedSmoothing(SIGMA, **options).certify(watchers[0], x, generator(7))
    early = RandomizedSmoothing(SIGMA, early_stop=True, **options).certify(watchers[1], x, generator(7))
    assert torch.equal(full.labels, early.labels)
    assert torch.equal(full.radii, early.radii)
    abstained = full.labels == -1
    assert 3 < int(abstained.sum()) < 60
    assert torch.equal(early.counts, torch.where(abstained, -1, full.counts))
    draws = [sum(len(votes) for votes in watcher.votes) for watcher in watchers]
    assert draws[0] == 60 * 20_001
    assert draws[1] < draws[0]


def test_noise_is_fresh_unclipped_and_of_the_right_size():
    x = torch.rand(2, 1, 3, 3, generator=generator(8))
    before = x.clone()
    model = Recorder()
    rng = generator(9)
    smoothing = RandomizedSmoothing(2.0, n0=2000, n=3000, batch_size=1000)
    first = smoothing.certify(model, x, rng)
    assert torch.equal(x, before)
    assert all(len(copies) == 1000 for copies in model.inputs)
    copies = torch.cat(model.inputs)
    assert len(copies) == 2 * 5000
    owners = torch.cat([torch.arange(2).repeat_interleave(2000), torch.arange(2).repeat_interleave(3000)])
    noise = (copies - x[owners]) / 2.0
    assert abs(float(noise.mean())) < 4 / math.sqrt(noise.numel())
    assert float(noise.std()) == pytest.approx(1, rel=4 / math.sqrt(2 * noise.numel()))
    assert copies.min() < 0
    assert copies.max() > 1
    assert len(torch.unique(noise[:, 0, 0, 0])) > 9900  # neither stages nor images share draws
    assert not torch.equal(smoothing.certify(model, x, rng).counts, first.counts)  # the next call draws anew
    assert torch.equal(smoothing.certify(model, x, generator(9)).counts, first.counts)


def test_images_share_forward_passes():
    model = Recorder()
    RandomizedSmoothing(SIGMA, n0=10, n=20, batch_size=64).certify(model, torch.rand(16, 4), generator())
    assert [len(copies) for copies in model.inputs] == [64, 64, 32] + [64] * 5


@pytest.mark.parametrize("fails", [False, True])
def test_modes_are_restored_and_no_gradient_is_kept(fails):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x.flatten(1) * (float("nan") if fails else 1)

    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(norm, nn.Dropout(), Spy()).train()
    norm.eval()
    statistics = {name: value.clone() for name, value in norm.state_dict().items()}
    smoothing = RandomizedSmoothing(SIGMA, n0=2, n=20)
    calls: list[Callable[..., object]] = [smoothing.certify, smoothing.predict]
    for call in calls:
        if fails:
            with pytest.raises(ValueError, match="NaN"):
                call(model, torch.rand(3, 4), generator())
        else:
            call(model, torch.rand(3, 4), generator())
        assert [module.training for module in model.modules()] == [True, False, True, True]
    assert set(seen) == {(False, False)}
    assert all(torch.equal(value, statistics[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": float("nan")}, "sigma"),
        ({"n": 0}, "n >= 1"),
        ({"n0": 0}, "n0"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        RandomizedSmoothing(**{"sigma": SIGMA, **options})


@pytest.mark.parametrize(
    ("x", "index", "message"),
    [
        (torch.tensor([[0.5, 0.5], [0.5, 1.1]]), None, "image 1"),
        (torch.tensor([[-0.01, 0.5]]), None, "image 0"),
        (torch.tensor([[float("nan"), 0.5]]), None, "image 0"),
        (torch.zeros(2, 3, dtype=torch.uint8), None, "floats"),
        (torch.zeros(3), None, "floats"),
        (torch.zeros(2, 3), torch.tensor([1, 1]), "distinct"),
        (torch.zeros(2, 3), torch.tensor([1]), "distinct"),
    ],
)
def test_bad_inputs(x, index, message):
    smoothing = RandomizedSmoothing(SIGMA, n=20)
    for call in (smoothing.certify, smoothing.predict):
        with pytest.raises(ValueError, match=message):
            call(Constant([0.0, 1.0]), x, generator(), index=index)


def test_bad_models_counts_and_too_few_draws():
    with pytest.raises(ValueError, match="logits"):
        RandomizedSmoothing(SIGMA, n=20).certify(nn.Flatten(0), torch.rand(2, 3), generator())
    with pytest.raises(ValueError, match="decisive"):
        RandomizedSmoothing(SIGMA, n=5, alpha=0.05).predict(Constant([1.0]), torch.rand(2, 3), generator())
    assert RandomizedSmoothing(SIGMA, n=6, alpha=0.05).predict(Constant([1.0]), torch.rand(1, 3), generator()) == 0
    for k in (-1, 11, torch.tensor([0.5])):
        with pytest.raises(ValueError, match="k must be"):
            clopper_pearson_lower(k, 10, 0.05)


def test_no_images_give_empty_results():
    smoothing = RandomizedSmoothing(SIGMA, n=20)
    result = smoothing.certify(Constant([0.0, 1.0]), torch.zeros(0, 3), generator())
    assert result.labels.shape == result.radii.shape == result.counts.shape == (0,)
    assert smoothing.predict(Constant([0.0, 1.0]), torch.zeros(0, 3), generator()).shape == (0,)
