"""Cross entropy and label smoothing: closed forms, linearity in the target, one loss per sample."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import CrossEntropy, LabelSmoothing, cross_entropy
from weathered.nn.build import build_model

LOSSES = [CrossEntropy(), LabelSmoothing(0.1), LabelSmoothing(0.7)]


def logits(rows: int = 10, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, 4, generator=generator(seed), dtype=torch.float64)


LABELS = torch.arange(10) % 4


def test_is_minus_the_log_of_the_labels_softmax():
    expected = -logits().softmax(1).gather(1, LABELS[:, None])[:, 0].log()
    assert_close(CrossEntropy()(logits(), LABELS), expected)
    assert_close(cross_entropy(torch.zeros(3, 4), LABELS[:3]), torch.full((3,), math.log(4)))


@given(st.floats(0, 0.99), st.integers(0, 50))
def test_smoothing_is_cross_entropy_against_the_softened_label(smoothing, seed):
    soft = (1 - smoothing) * F.one_hot(LABELS, 4) + smoothing / 4
    expected = -(soft * logits(seed=seed).log_softmax(1)).sum(1)
    assert_close(LabelSmoothing(smoothing)(logits(seed=seed), LABELS), expected)


def test_no_smoothing_is_cross_entropy():
    assert torch.equal(LabelSmoothing(0.0)(logits(), LABELS), CrossEntropy()(logits(), LABELS))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_hot_targets_equal_labels_and_mixtures_are_linear(loss):
    one_hot = F.one_hot(LABELS, 4).double()
    assert_close(loss.soft(logits(), one_hot), loss(logits(), LABELS))
    target = Target.hard(LABELS).mix(torch.arange(10).roll(1), torch.tensor(0.3))
    expected = 0.3 * loss(logits(), LABELS) + 0.7 * loss(logits(), LABELS.roll(1))
    assert_close(losses_of(loss, logits(), target), expected, rtol=1e-6, atol=1e-6)


def test_smoothing_before_or_after_mixing_is_the_same():
    mixed = Target.hard(LABELS).mix(torch.arange(10).roll(1), torch.tensor(0.3)).dense(4).double()
    smoothed = 0.8 * mixed + 0.2 / 4
    assert_close(LabelSmoothing(0.2).soft(logits(), mixed), CrossEntropy().soft(logits(), smoothed))


@pytest.mark.parametrize("loss", LOSSES)
def test_shifts_change_nothing_and_gradients_are_exact(loss):
    z = logits().requires_grad_()
    assert_close(loss(z + 100, LABELS), loss(z, LABELS))
    (gradient,) = torch.autograd.grad(loss(z, LABELS).sum(), z)
    soft = (1 - loss.label_smoothing) * F.one_hot(LABELS, 4) + loss.label_smoothing / 4
    assert_close(gradient, z.detach().softmax(1) - soft)


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_logits_stay_finite_and_rows_stay_apart(loss):
    z = logits().float() * 1e4
    assert torch.isfinite(loss(z, LABELS)).all()
    assert loss(z, LABELS).shape == (10,)
    assert_close(loss(z, LABELS)[3:4], loss(z[3:4], LABELS[3:4]))
    assert loss(z[:0], LABELS[:0]).shape == (0,)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_bad_smoothing(smoothing):
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\)"):
        LabelSmoothing(smoothing)


def test_smoothing_keeps_a_trained_model_less_certain(small_digits: Dataset):
    confidence = []
    for loss in (CrossEntropy(), LabelSmoothing(0.3)):
        settings = Settings(epochs=20, batch_size=40, lr=0.1)
        run = Run(
            lambda seed: build_model("mlp:width=32", small_digits, seed=seed),
            small_digits,
            loss=loss,
            settings=settings,
        )
        logits = fit(run).predict(small_digits)
        assert (logits.argmax(1) == small_digits.labels).double().mean() > 0.95
        confidence.append(float(logits.softmax(1).max(1).values.mean()))
    assert confidence[0] > 0.9
    assert confidence[1] == pytest.approx(0.7 + 0.3 / 10, abs=0.1)


def test_a_negative_label_is_an_error_and_not_a_loss_of_zero():
    for label in (-100, -1, 3):
        with pytest.raises(ValueError, match="labels must be in"):
            CrossEntropy()(torch.zeros(1, 3), torch.tensor([label]))
