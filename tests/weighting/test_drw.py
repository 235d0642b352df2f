"""DRW: the class weights, the moment they switch on, and the weighted mean they stand for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.facts import traits_of
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.weighting.base import class_weights
from weathered.weighting.drw import DRW

COUNTS = [5000, 1000, 300, 50]


@given(
    st.lists(st.integers(1, 10_000), min_size=2, max_size=12),
    st.floats(0, 0.99999),
    st.sampled_from(["effective", "inverse"]),
)
def test_class_weights_sum_to_the_classes_in_the_reverse_order_of_counts(counts, beta, rule):
    w = class_weights(counts, beta, rule)
    assert float(w.sum()) == pytest.approx(len(counts))
    assert (w > 0).all()
    ordered = w[torch.tensor(counts).argsort()]
    assert (ordered.diff() <= 1e-9).all()


def test_weights_equal_the_formula():
    n, beta = torch.tensor(COUNTS).double(), 0.999
    effective = (1 - beta**n) / (1 - beta)
    assert_close(class_weights(COUNTS, beta), 4 / effective / (1 / effective).sum())
    assert_close(class_weights(COUNTS, rule="inverse"), 4 / n / (1 / n).sum())


def test_beta_zero_gives_ones_and_beta_one_the_inverse_counts():
    assert torch.equal(class_weights(COUNTS, 0.0), torch.ones(4).double())
    inverse = class_weights([10_000, 100, 3], rule="inverse")
    assert_close(class_weights([10_000, 100, 3], 1 - 1e-9), inverse, rtol=1e-2, atol=0)
    # the cancellation of 1 - beta^n would show here
    assert_close(class_weights([10_000, 100, 3], 1 - 1e-15), inverse, rtol=1e-9, atol=0)


def test_weighted_mean_is_torchs_and_ignores_a_constant():
    part = DRW(COUNTS, start=0.0)
    logits = torch.randn(20, 4, generator=generator(0), dtype=torch.float64)
    labels = torch.randint(4, (20,), generator=generator(1))
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = part(losses, labels, 0.0)
    assert float(weights.mean()) == pytest.approx(1)
    for constant in (1.0, 17.0):
        expected = F.cross_entropy(logits, labels, weight=constant * part.class_weights)
        assert_close((weights * losses).mean(), expected)
    assert torch.equal(DRW(COUNTS, start=0.0, beta=0.0)(losses, labels, 0.0), torch.ones(20).double())


def test_a_batch_of_one_class_weighs_one():
    assert_close(DRW(COUNTS, start=0.0)(torch.rand(5), torch.full((5,), 3), 0.5), torch.ones(5))


def test_switches_on_at_start():
    part = DRW(COUNTS, start=0.8)
    losses, labels = torch.rand(4), torch.arange(4)
    assert torch.equal(part(losses, labels, 0.8 - 1e-9), torch.ones(4))
    assert part(losses, labels, 0.8)[3] > 2
    assert torch.equal(DRW(COUNTS, start=1.0)(losses, labels, 1 - 1e-9), torch.ones(4))


def test_a_mixture_weighs_the_mean_of_its_classes():
    part = DRW(COUNTS, start=0.0)
    target = Target.hard(torch.arange(4)).mix(torch.tensor([3, 2, 1, 0]), torch.tensor([1.0, 0.5, 0.25, 0.0]))
    raw = target.dense(4).double() @ part.class_weights
    assert_close(part(torch.rand(4), target, 0.5), (raw / raw.mean()).float())
    assert_close(part(torch.rand(4), target.dense(4), 0.5), (raw / raw.mean()).float())


def test_a_mixture_is_not_the_blend_of_two_weighted_means():
    """The stated convention: one sum of weights for the batch, where blending divides each half by its own."""
    part, lam = DRW(COUNTS, start=0.0), 0.3
    logits = torch.randn(6, 4, generator=generator(0), dtype=torch.float64)
    a, b = torch.tensor([0, 0, 1, 2, 3, 0]), torch.tensor([1, 0, 3, 3, 3, 2])
    blend = lam * F.cross_entropy(logits, a, part.class_weights) + (1 - lam) * F.cross_entropy(
        logits, b, part.class_weights
    )
    target = Target(torch.stack([a, b]), torch.tensor([[lam], [1 - lam]]).double().expand(2, 6))
    losses = lam * F.cross_entropy(logits, a, reduction="none") + (1 - lam) * F.cross_entropy(
        logits, b, reduction="none"
    )
    ours = (part(losses, target, 0.5) * losses).mean()
    w = target.dense(4) @ part.class_weights
    assert_close(ours, (w * losses).sum() / w.sum())
    assert abs(float(ours - blend)) > 0.01


def test_weights_take_dtype_of_losses_and_no_gradient():
    losses = torch.rand(4, requires_grad=True)
    weights = DRW(COUNTS, start=0.0)(losses, torch.arange(4), 0.5)
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert traits_of(DRW(COUNTS)).batchwise


def runs(small_digits: Dataset, **options) -> list[torch.Tensor]:
    settings = Settings(epochs=2, batch_size=40)
    run = Run(
        lambda seed: build_model("mlp:width=16", small_digits, seed=seed), small_digits, settings=settings, **options
    )
    fit(run)
    return list(run.model.parameters())


def test_a_switch_that_never_comes_is_bit_identical_to_no_reweighting(small_digits: Dataset):
    # progress stays below 1, so start=1 stands for E0 > epochs
    counts = small_digits.class_counts
    plain, never = runs(small_digits), runs(small_digits, reweight=DRW(counts, start=1.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, never, strict=True))
    # four of the ten steps lie after 0.6
    late = runs(small_digits, reweight=DRW(counts, start=0.6, rule="inverse"))
    assert not all(torch.equal(a, b) for a, b in zip(plain, late, strict=True))


def test_a_run_weighs_mixtures(small_digits: Dataset):
    weights = runs(small_digits, reweight=DRW(small_digits.class_counts, start=0.0), transforms=[MixUp()])
    assert all(torch.isfinite(w).all() for w in weights)


@pytest.mark.parametrize("start", [-0.1, 1.1, 160, math.nan])
def test_start_is_a_share_of_training(start):
    with pytest.raises(ValueError, match="a share of training and not an epoch"):
        DRW(COUNTS, start=start)


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match="beta must be in"):
        DRW(COUNTS, beta=beta)


def test_bad_inputs():
    with pytest.raises(ValueError, match="'effective' or 'inverse'"):
        DRW(COUNTS, rule="median")  # pyright: ignore[reportArgumentType]
    for bad in (0, -1, math.nan):
        with pytest.raises(ValueError, match="class 1 has"):
            DRW(torch.tensor([5, bad, 3]))
    part = DRW(COUNTS, start=0.0)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\] for 4 classes, got 4"):
        part(torch.rand(2), torch.tensor([0, 4]), 0.5)
    with pytest.raises(ValueError, match="got -1"):
        part(torch.rand(2), torch.tensor([0, -1]), 0.5)
    with pytest.raises(ValueError, match="one for each of 2"):
        part(torch.tensor(1.0), torch.tensor([0, 1]), 0.5)
