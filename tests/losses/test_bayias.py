"""Bayias: its limits, the prior it leaves in the logits, and how it meets mixtures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.bayias import Bayias, log_prior_ratio
from weathered.losses.gce import GeneralizedCrossEntropy
from weathered.losses.logit_adjustment import LogitAdjustment
from weathered.mixing.unimix import UniMix
from weathered.nn.build import build_model

COUNTS = [500, 100, 30, 5]
PI = torch.tensor(COUNTS).double() / sum(COUNTS)
PRIOR = [0.1, 0.2, 0.3, 0.4]
LABELS = torch.arange(12) % 4


def drawn(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(12, 4, generator=generator(0, "logits"), dtype=dtype)


def per_sample(z: torch.Tensor, labels: torch.Tensor = LABELS) -> torch.Tensor:
    return F.cross_entropy(z, labels, reduction="none")


def test_the_prior_of_training_is_cross_entropy():
    for prior in (COUNTS, PI, PI.tolist()):
        assert_close(Bayias(COUNTS, prior)(drawn(), LABELS), per_sample(drawn()), atol=1e-12, rtol=0)


def test_a_uniform_prior_is_logit_adjustment_and_the_balanced_softmax():
    n, z = torch.tensor(COUNTS).double(), drawn()
    balanced = -(n * z.exp()).div((n * z.exp()).sum(1, keepdim=True))[torch.arange(12), LABELS].log()
    for prior in (None, [0.25] * 4):
        assert_close(Bayias(COUNTS, prior)(z, LABELS), LogitAdjustment(COUNTS, tau=1.0)(z, LABELS), atol=1e-7, rtol=0)
        assert_close(Bayias(COUNTS, prior)(z, LABELS), balanced, atol=1e-7, rtol=0)


def test_equal_counts_are_cross_entropy():
    assert_close(Bayias([7] * 4)(drawn(), LABELS), per_sample(drawn()), atol=1e-12, rtol=0)


def test_offsets_are_the_log_ratio_of_the_priors():
    assert_close(log_prior_ratio(COUNTS), PI.log() + math.log(4), atol=1e-12, rtol=0)
    assert_close(
        log_prior_ratio(COUNTS, PRIOR), (PI / torch.tensor(PRIOR, dtype=torch.float64)).log(), atol=1e-12, rtol=0
    )
    assert log_prior_ratio(COUNTS)[0] > 0 > log_prior_ratio(COUNTS)[3]


def test_logits_that_know_nothing_predict_the_prior_of_training_and_rest_on_it():
    z = torch.zeros(sum(COUNTS), 4, dtype=torch.float64, requires_grad=True)
    loss = Bayias(COUNTS)
    assert_close(loss.transform_logits(z[:1]).softmax(1)[0], PI)
    labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    (gradient,) = torch.autograd.grad(loss(z, labels).mean(), z)
    assert_close(gradient.sum(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_logits_that_hold_the_prior_of_the_test_rest_on_the_prior_of_training():
    z = torch.tensor(PRIOR, dtype=torch.float64).log()[None]
    assert_close(Bayias(COUNTS, PRIOR).transform_logits(z).softmax(1)[0], PI)


@given(st.integers(1, 1000), st.floats(1e-3, 1e3))
def test_only_ratios_of_counts_and_of_the_prior_matter(factor, scale):
    scaled = Bayias([factor * n for n in COUNTS], [scale * q for q in PRIOR])
    assert_close(scaled(drawn(), LABELS), Bayias(COUNTS, PRIOR)(drawn(), LABELS), atol=1e-10, rtol=0)


def test_gradient_is_the_residual_of_the_shifted_softmax():
    z = drawn().requires_grad_()
    loss = Bayias(COUNTS, PRIOR)
    (gradient,) = torch.autograd.grad(loss(z, LABELS).sum(), z)
    assert_close(gradient, (z + loss.offsets).softmax(1) - F.one_hot(LABELS, 4), atol=1e-12, rtol=0)


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    loss, z = Bayias(COUNTS, PRIOR), drawn()
    part, batch = UniMix(COUNTS), Batch.of(torch.eye(12), LABELS)
    target = part(batch, generator(0)).target
    partner, lam = part.draw(LABELS, generator(0))
    expected = lam * loss(z, LABELS) + (1 - lam) * loss(z, LABELS[partner])
    assert_close(losses_of(loss, z, target), expected, atol=1e-6, rtol=1e-6)
    assert_close(
        F.cross_entropy(z + loss.offsets, target.dense(4).double(), reduction="none"), expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("base", [None, GeneralizedCrossEntropy(0.7)])
def test_share_one_is_the_unmixed_loss_exactly(base):
    mixed = Target.hard(LABELS).mix(torch.arange(12).roll(1), torch.ones(12))
    loss = Bayias(COUNTS, base=base)
    assert torch.equal(losses_of(loss, drawn(), mixed), loss(drawn(), LABELS))


def test_a_base_is_given_the_shifted_logits():
    base = GeneralizedCrossEntropy(0.7)
    assert_close(Bayias(COUNTS, PRIOR, base)(drawn(), LABELS), base(drawn() + log_prior_ratio(COUNTS, PRIOR), LABELS))


def test_predictions_are_those_of_the_raw_logits(small_digits: Dataset):
    assert torch.equal(Bayias(COUNTS).test_logits(drawn()), drawn())
    counts = torch.arange(1, 11) * 10
    plain, shifted = (
        Run(
            lambda seed: build_model("mlp:width=8", small_digits, seed=seed),
            small_digits,
            settings=Settings(epochs=1),
            **options,
        )
        for options in ({}, {"loss": Bayias(counts)})
    )
    assert torch.equal(plain.predict(small_digits), shifted.predict(small_digits))


def test_half_precision_is_computed_in_single_and_inputs_stay():
    z = drawn(torch.float16)
    before = z.clone()
    losses = Bayias(COUNTS)(z, LABELS)
    assert losses.dtype == torch.float32
    assert torch.equal(z, before)
    assert_close(losses, Bayias(COUNTS)(z.float(), LABELS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", [0, -1])
def test_a_class_without_samples_is_named(bad):
    with pytest.raises(ValueError, match="class 1 has"):
        Bayias([5, bad, 3])


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf])
def test_a_prior_that_is_not_positive_is_refused(bad):
    with pytest.raises(ValueError, match=r"test_prior must be > 0 and finite, got .* for class 2"):
        Bayias(COUNTS, [0.5, 0.3, bad, 0.2])


@pytest.mark.parametrize("prior", [[0.5, 0.5], [[0.25] * 4], 0.25])
def test_a_prior_of_another_shape_is_refused(prior):
    with pytest.raises(ValueError, match="one number for each of 4 classes"):
        Bayias(COUNTS, prior)


def test_logits_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"logits must be \(B, 4\)"):
        Bayias(COUNTS)(drawn()[:, :3], LABELS % 3)
