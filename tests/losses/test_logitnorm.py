"""LogitNorm: what the scale of the logits no longer does, its gradient, its bounds, and what it does at zero."""

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
from weathered.losses.cross_entropy import CrossEntropy, LabelSmoothing
from weathered.losses.logitclip import LogitClip
from weathered.losses.logitnorm import LogitNorm, normalise_logits
from weathered.nn.build import build_model
from weathered.scores.extract import extract
from weathered.scores.msp import MSP

TAUS = [0.01, 0.04, 1.0]


def logits(rows: int = 40, classes: int = 7, seed: int = 0) -> torch.Tensor:
    z = torch.randn(rows, classes, generator=generator(seed, "logits"), dtype=torch.float64)
    return z * (0.2 + 10 * torch.rand(rows, 1, generator=generator(seed, "size"), dtype=torch.float64))


def labels(rows: int = 40, classes: int = 7) -> torch.Tensor:
    return torch.arange(rows) % classes


def gradient_of(part, z: torch.Tensor) -> torch.Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(part(z, labels(len(z), z.shape[1])).sum(), z)[0]


@pytest.mark.parametrize("tau", TAUS)
def test_is_cross_entropy_of_the_normalised_logits(tau):
    u = logits() / logits().square().sum(1, keepdim=True).sqrt()
    assert_close(LogitNorm(tau)(logits(), labels()), F.cross_entropy(u / tau, labels(), reduction="none"))
    official = logits().float() / (torch.norm(logits().float(), p=2, dim=-1, keepdim=True) + 1e-7) / tau
    assert_close(
        LogitNorm(tau)(logits().float(), labels()),
        F.cross_entropy(official, labels(), reduction="none"),
        rtol=1e-5,
        atol=1e-5,
    )


@given(st.floats(1e-3, 1e3), st.sampled_from(TAUS), st.integers(0, 50))
def test_positive_scales_change_nothing(scale, tau, seed):
    z = logits(seed=seed).float()
    assert_close(LogitNorm(tau)(scale * z, labels()), LogitNorm(tau)(z, labels()), rtol=1e-5, atol=1e-5)
    assert (LogitNorm(tau)(-z, labels()) - LogitNorm(tau)(z, labels())).abs().max() > 0.1


@pytest.mark.parametrize("tau", TAUS)
def test_gradient_is_the_projected_residual_over_tau_and_norm(tau):
    z = logits()
    norm = z.norm(dim=1, keepdim=True)
    u = z / norm
    residual = (u / tau).softmax(1) - F.one_hot(labels(), 7)
    expected = (residual - u * (u * residual).sum(1, keepdim=True)) / (tau * norm)
    found = gradient_of(LogitNorm(tau), z)
    assert_close(found, expected, rtol=1e-6, atol=1e-12)
    assert ((z * found).sum(1).abs() < 1e-5).all()
    assert_close((z.float() * gradient_of(LogitNorm(tau), z.float())).sum(1), torch.zeros(40), rtol=0, atol=1e-4)
    assert torch.autograd.gradcheck(lambda x: LogitNorm(1.0)(x, labels(6)), (z[:6].requires_grad_(),))


def test_doubling_the_logits_halves_the_gradient():
    assert_close(
        gradient_of(LogitNorm(0.5), 2 * logits()), gradient_of(LogitNorm(0.5), logits()) / 2, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("classes", "tau"), [(2, 1.0), (10, 1.0), (10, 0.04), (100, 0.04), (100, 1.0)])
def test_floor_and_ceiling_are_reached_and_never_crossed(classes, tau):
    floor = math.log1p((classes - 1) * math.exp(-math.sqrt(classes / (classes - 1)) / tau))
    ceiling = math.log1p((classes - 1) * math.exp(math.sqrt(2) / tau))
    part, zero = LogitNorm(tau), torch.tensor([0])
    best = torch.full((1, classes), -1.0, dtype=torch.float64)
    best[0, 0] = classes - 1
    assert float(part(3 * best, zero)) == pytest.approx(floor, abs=1e-10)
    z = torch.cat([logits(2000, classes), best + 0.3 * logits(2000, classes), -best, torch.eye(classes).double()])
    losses = part(z, zero.expand(len(z)))
    assert (losses >= floor - 1e-12).all()
    assert (losses <= ceiling + 1e-12).all()
    if classes == 2:
        assert float(part(torch.tensor([[-1.0, 1.0]]).double(), zero)) == pytest.approx(ceiling, abs=1e-10)


def test_floor_of_ten_classes_has_the_known_values():
    best = torch.full((1, 10), -1.0, dtype=torch.float64)
    best[0, 0] = 9
    assert float(LogitNorm(1.0)(best, torch.tensor([0]))) == pytest.approx(1.420, abs=5e-4)
    assert float(LogitNorm(0.04)(best, torch.tensor([0]))) == pytest.approx(3e-11, rel=0.2)


@pytest.mark.parametrize("tau", TAUS)
def test_equals_logitclip_beyond_its_threshold_and_cross_entropy_at_its_own_norm(tau):
    clip = LogitClip(0.9 * float(logits().norm(dim=1).min()), delta=1 / tau)
    assert_close(LogitNorm(tau)(logits(), labels()), clip(logits(), labels()))
    z = F.normalize(logits(), dim=1) / tau
    assert_close(LogitNorm(tau)(z, labels()), CrossEntropy()(z, labels()))


def test_shifts_of_all_logits_change_the_loss():
    z, part = logits(), LogitNorm(0.5)
    assert (part(z + 5, labels()) - part(z, labels())).abs().max() > 0.1
    centred = z - z.mean(1, keepdim=True)
    shifted = (z + 5) - (z + 5).mean(1, keepdim=True)
    assert_close(part(centred, labels()), part(shifted, labels()))


@given(st.sampled_from(TAUS), st.integers(0, 50))
def test_order_of_the_logits_is_kept(tau, seed):
    z = logits(seed=seed)
    scaled = normalise_logits(z, tau)
    assert torch.equal(scaled.argsort(1), z.argsort(1))
    assert_close(scaled.norm(dim=1), torch.full((40,), 1 / tau).double())


def test_limits_of_tau():
    assert_close(LogitNorm(1e6)(logits(), labels()), torch.full((40,), math.log(7)).double(), rtol=1e-5, atol=0)
    losses = LogitNorm(1e-4)(logits(), labels())
    right = logits().argmax(1) == labels()
    assert 0 < right.sum() < 40
    assert (losses[right] < 1e-6).all()
    assert (losses[~right] > 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-30])
def test_a_row_without_direction_has_the_loss_of_the_uniform_prediction_and_no_gradient(dtype, size):
    z = torch.full((3, 4), size if dtype != torch.float64 else size * 1e-10, dtype=dtype).requires_grad_()
    losses = LogitNorm(0.04)(z, torch.arange(3))
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    assert_close(losses.double(), torch.full((3,), math.log(4)).double(), rtol=1e-6, atol=0)
    assert torch.equal(gradient, torch.zeros_like(z))


def test_a_norm_that_overflows_is_not_scaled_out_of_sight():
    z = torch.tensor([[3e19, -4e19, 1e19], [3e18, -4e18, 1e18]])
    losses = LogitNorm(1.0)(z, labels(2))
    assert torch.equal(losses.isfinite(), torch.tensor([False, True]))
    assert_close(losses[1].double(), LogitNorm(1.0)(z.double(), labels(2))[1])


def test_small_rows_do_not_touch_others_and_nan_passes_through():
    z = logits(4).float()
    z[1] = 0
    z[2, 3] = math.nan
    losses = LogitNorm()(z, labels(4))
    assert torch.equal(losses.isnan(), torch.tensor([False, False, True, False]))
    assert_close(losses[0], LogitNorm()(z[:1], labels(1))[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    z = (1e-3 * logits()).to(dtype)
    losses = LogitNorm(0.01)(z, labels())
    assert losses.dtype == torch.float32
    assert_close(losses, LogitNorm(0.01)(z.float(), labels()))
    p = F.one_hot(labels(), 7).to(dtype)
    assert_close(LogitNorm(0.01).soft(z, p), losses)


def test_mixtures_and_smoothing_apply_to_the_scaled_logits():
    z, part = logits(), LogitNorm(0.3)
    target = Target.hard(labels()).mix(torch.arange(40).roll(1), torch.tensor(0.3))
    expected = 0.3 * part(z, labels()) + 0.7 * part(z, labels().roll(1))
    assert_close(losses_of(part, z, target), expected, rtol=1e-6, atol=1e-6)
    smooth = LogitNorm(0.3, base=LabelSmoothing(0.2))
    assert_close(smooth(z, labels()), LabelSmoothing(0.2)(normalise_logits(z, 0.3), labels()))


def test_inputs_stay_as_they_are_and_empty_batches_pass():
    z = logits()
    LogitNorm()(z, labels())
    assert torch.equal(z, logits())
    assert LogitNorm()(z[:0], labels(0)).shape == (0,)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_bad_tau(tau):
    with pytest.raises(ValueError, match="tau must be > 0 and finite"):
        LogitNorm(tau)
    with pytest.raises(ValueError, match="tau must be > 0 and finite"):
        normalise_logits(logits(), tau)


@pytest.mark.parametrize("shape", [(5,), (3, 1), (2, 3, 4)])
def test_bad_logits(shape):
    with pytest.raises(ValueError, match=r"logits must be \(B, C\) with at least 2 classes"):
        LogitNorm()(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long))


def test_predictions_and_scores_are_those_of_the_raw_logits(small_digits: Dataset):
    settings = Settings(epochs=8, batch_size=40, lr=0.1)
    run = Run(
        lambda seed: build_model("mlp:width=32", small_digits, seed=seed),
        small_digits,
        loss=LogitNorm(1.0),
        settings=settings,
    )
    means: list[float] = []
    fit(run, after_epoch=lambda run, loss: means.append(loss))
    assert 1.42 < means[-1] < means[0]
    raw = run.predict(small_digits)
    assert (raw.argmax(1) == small_digits.labels).double().mean() > 0.9
    with torch.no_grad():
        by_hand = run.model(small_digits.floats(torch.arange(len(small_digits))))
    assert_close(raw, by_hand)
    score = MSP().score(extract(run.model, small_digits))
    assert_close(score, 1 - by_hand.double().softmax(1).max(1).values, rtol=0, atol=1e-5)


def test_small_taus_multiply_the_first_steps_of_small_logits():
    """Why networks without batch normalisation need a smaller learning rate."""
    z = 0.1 * F.normalize(logits(), dim=1)
    plain = gradient_of(CrossEntropy(), z).norm(dim=1)
    assert (gradient_of(LogitNorm(0.04), z).norm(dim=1) / plain).median() > 25
