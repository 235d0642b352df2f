"""LDAM: its margins, its limits, its gradient, and the head it needs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.ldam import LDAM, class_margins, ldam
from weathered.nn.build import build_model
from weathered.nn.heads import CosineHead
from weathered.weighting.drw import DRW

COUNTS = [5000, 1000, 300, 50]


def cosines(rows: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(rows, 4, generator=generator(seed, "cosines"), dtype=dtype) * 2 - 1


def labels(rows: int = 12) -> torch.Tensor:
    return torch.arange(rows) % 4


def test_without_margin_is_the_weighted_cross_entropy_of_scaled_cosines():
    c, y = cosines(), labels()
    losses = LDAM(COUNTS, max_margin=0.0)(c, y)
    assert_close(losses, F.cross_entropy(30 * c, y, reduction="none"), atol=1e-7, rtol=0)
    part = DRW(COUNTS, start=0.0)
    weighted = (part(losses, y, 0.5) * losses).mean()
    assert_close(weighted, F.cross_entropy(30 * c, y, weight=part.class_weights), atol=1e-7, rtol=0)


def test_margins_follow_the_fourth_root_and_the_rarest_has_the_largest():
    m = class_margins(COUNTS, 0.5)
    assert float(m.max()) == 0.5
    assert float(m.min()) == pytest.approx(0.15811, abs=1e-5)
    n = torch.tensor(COUNTS).double()
    assert_close(m[:, None] / m, (n / n[:, None]) ** 0.25, rtol=1e-6, atol=0)
    assert_close(class_margins([7 * k for k in COUNTS], 0.5), m, rtol=1e-12, atol=0)
    assert torch.equal(class_margins(torch.tensor(COUNTS), 0.5), m)


def test_equal_counts_give_every_class_the_largest_margin():
    assert torch.equal(class_margins([20] * 5, 0.3), torch.full((5,), 0.3, dtype=torch.float64))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 100))
def test_loss_is_at_least_cross_entropy_and_grows_with_the_margin(a, b, seed):
    c, y = cosines(seed=seed), labels()
    low, high = (LDAM(COUNTS, max_margin=m)(c, y) for m in sorted((a, b)))
    assert (high >= low - 1e-12).all()
    assert (low >= F.cross_entropy(30 * c, y, reduction="none") - 1e-12).all()


def test_gradient_is_the_scale_times_the_residual_of_the_margin_softmax():
    c, y = cosines().requires_grad_(), labels()
    part = LDAM(COUNTS, scale=10.0)
    (gradient,) = torch.autograd.grad(part(c, y).sum(), c)
    onehot = F.one_hot(y, 4)
    p = (10 * (c - class_margins(COUNTS, 0.5)[y, None] * onehot)).softmax(1)
    assert_close(gradient, 10 * (p - onehot), rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: part(z, y), (c,))


def test_scaling_features_or_a_class_vector_changes_nothing():
    head = CosineHead(6, 4).double()
    z = torch.randn(12, 6, generator=generator(0, "z"), dtype=torch.float64)
    with torch.no_grad():
        before = head(z)
        losses = LDAM(COUNTS)(before, labels())
        head.weight[1] *= 7
        after = head(z * torch.linspace(0.1, 50, 12)[:, None])
    assert_close(after, before)
    assert_close(LDAM(COUNTS)(after, labels()), losses)


def test_zero_features_have_a_finite_loss_and_gradient():
    head = CosineHead(6, 4)
    z = torch.zeros(4, 6, requires_grad=True)
    losses = LDAM(COUNTS)(head(z), labels(4))
    losses.sum().backward()
    assert torch.equal(head(z), torch.zeros(4, 4))
    assert torch.isfinite(losses).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_mixtures_take_the_margin_of_each_label():
    c, y = cosines(), labels()
    mixed = Target.hard(y).mix(torch.arange(12).roll(1), torch.tensor(0.3))
    expected = 0.3 * LDAM(COUNTS)(c, y) + 0.7 * LDAM(COUNTS)(c, y.roll(1))
    assert_close(losses_of(LDAM(COUNTS), c, mixed), expected, rtol=1e-6, atol=1e-6)


def test_inputs_stay_as_they_are_and_losses_are_one_per_sample():
    c, y = cosines(dtype=torch.float32), labels()
    before = c.clone()
    assert LDAM(COUNTS)(c, y).shape == (12,)
    assert torch.equal(c, before)
    assert LDAM(COUNTS)(c[:0], y[:0]).shape == (0,)


def test_probabilities_come_from_the_scale_without_margin():
    c = cosines()
    assert torch.equal(LDAM(COUNTS, scale=7.0).test_logits(c), 7 * c)


def test_rounding_of_bfloat16_is_no_error_and_nan_is_left_to_the_engine():
    head = CosineHead(8, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        c = torch.cat([head(head.weight[k].repeat(64, 1)) for k in range(4)]).float()
    assert torch.isfinite(LDAM(COUNTS)(c, torch.arange(4).repeat_interleave(64))).all()
    assert torch.isfinite(LDAM(COUNTS)(torch.full((1, 4), 1.0078125), torch.tensor([0]))).all()
    assert torch.isnan(LDAM(COUNTS)(torch.full((1, 4), math.nan), torch.tensor([0]))).all()


@pytest.mark.parametrize("bad", [0, -3, math.nan, math.inf])
def test_a_class_without_samples_is_named(bad):
    with pytest.raises(ValueError, match="class 2 has"):
        LDAM(torch.tensor([10, 5, bad, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_margin": -0.1}, "max_margin must be >= 0"),
        ({"max_margin": math.nan}, "max_margin must be >= 0"),
        ({"scale": 0.0}, "scale must be > 0"),
        ({"scale": math.nan}, "scale must be > 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LDAM(COUNTS, **options)


def test_bad_inputs():
    part = LDAM(COUNTS)
    with pytest.raises(ValueError, match="one number for each class"):
        LDAM(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"logits must be \(B, 4\)"):
        part(cosines()[:, :3], labels() % 3)
    with pytest.raises(ValueError, match="got 4"):
        part(cosines(2), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="got -100"):
        part(cosines(2), torch.tensor([0, -100]))
    with pytest.raises(ValueError, match=r"got 1\.5 in absolute value; end the model in a cosine head"):
        part(torch.tensor([[0.0, -1.5, 0.0, 0.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="cosine head"):
        ldam(30 * cosines(), labels(), class_margins(COUNTS, 0.5), 30.0)


def test_a_run_needs_the_cosine_head(small_digits: Dataset):
    part = LDAM(small_digits.class_counts)
    with pytest.raises(Incompatible, match="build the model with head=cosine"):
        Run(build_model("cnn_small:width=8", small_digits), small_digits, loss=part)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_learns_with_ldam_and_drw(small_digits: Dataset, precision):
    settings = Settings(epochs=40, batch_size=40, lr=0.1, precision=precision)
    run = Run(
        lambda seed: build_model("mlp:width=32", small_digits, head="cosine", seed=seed),
        small_digits,
        loss=LDAM(small_digits.class_counts),
        reweight=DRW(small_digits.class_counts, start=0.8),
        settings=settings,
    )
    fit(run)
    logits = run.predict(small_digits)
    assert (logits.argmax(1) == small_digits.labels).double().mean() > 0.95
    assert 1 < logits.abs().max() < 31
