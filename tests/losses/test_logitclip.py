"""LogitClip: the bound it is named for, which rows it touches, and how."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import NonFinite
from weathered.core.facts import traits_of
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import CrossEntropy, LabelSmoothing
from weathered.losses.ldam import LDAM
from weathered.losses.logitclip import LogitClip, clip_logits
from weathered.nn.build import build_model

ORDERS = [1.0, 2.0, 4.0, math.inf]


def logits(rows: int = 40, classes: int = 7, seed: int = 0, size: float = 3.0) -> torch.Tensor:
    z = torch.randn(rows, classes, generator=generator(seed, "logits"), dtype=torch.float64)
    return z * size * torch.rand(rows, 1, generator=generator(seed, "size"), dtype=torch.float64)


def labels(rows: int = 40, classes: int = 7) -> torch.Tensor:
    return torch.arange(rows) % classes


def norms(z: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    return torch.linalg.vector_norm(z, p, dim=1)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("delta_share", [1.0, 0.4])
def test_cross_entropy_is_bounded_on_both_sides(p, delta_share):
    classes, tau = 5, 1.7
    c = 2 ** (1 - 1 / p)
    low, high = (math.log1p((classes - 1) * math.exp(sign * c * tau)) for sign in (-1, 1))
    z = logits(20_000, classes, size=30.0)
    # rows at the bounds: all on the label, all against it, and opposed pairs
    edge = 100 * torch.cat(
        [torch.eye(classes), -torch.eye(classes), torch.eye(classes) - torch.eye(classes).roll(1, 1)]
    )
    z = torch.cat([z, edge.double()])
    part = LogitClip(tau, delta_share * tau, p)
    for label in range(classes):
        losses = part(z, torch.full((len(z),), label))
        assert (losses >= low - 1e-12).all()
        assert (losses <= high + 1e-12).all()
    if p == 1.0 and delta_share == 1.0:
        assert float(part(edge.double(), torch.arange(5).repeat(3)).max()) > high - 1e-9


@pytest.mark.parametrize(("classes", "tau", "minimum"), [(10, 1.0, 1.41987), (100, 1.0, 3.6), (4, 0.3, None)])
def test_exact_minimum_of_cross_entropy(classes, tau, minimum):
    exact = math.log1p((classes - 1) * math.exp(-tau * math.sqrt(classes / (classes - 1))))
    if minimum is not None:
        assert exact == pytest.approx(minimum, abs=10 ** -len(str(minimum).split(".")[1]))
    best = torch.full((1, classes), -1.0, dtype=torch.float64)
    best[0, 0] = classes - 1
    part, zero = LogitClip(tau), torch.tensor([0])
    assert float(part(1000 * best, zero)) == pytest.approx(exact, abs=1e-12)
    nearby = 1000 * best + torch.randn(5000, classes, generator=generator(0), dtype=torch.float64) * 300
    assert (part(nearby, zero.expand(5000)) >= exact - 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("infinite", [False, True])
def test_a_threshold_above_every_norm_is_the_base_loss_bit_for_bit(dtype, p, infinite):
    z = torch.cat([logits(), torch.zeros(2, 7)]).to(dtype)
    tau = math.inf if infinite else float(norms(z, p).max())
    a, b = (z.clone().requires_grad_() for _ in range(2))
    clipped, plain = LogitClip(tau, p=p)(a, labels(42)), CrossEntropy()(b, labels(42))
    clipped.sum().backward()
    plain.sum().backward()
    assert torch.equal(clipped, plain)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("delta", [0.3, 0.01])
def test_above_the_threshold_it_is_logitnorm(delta):
    z = logits() + 0.1
    tau = 0.9 * float(norms(z).min())
    expected = F.cross_entropy(delta * F.normalize(z, dim=1), labels(), reduction="none")
    assert_close(LogitClip(tau, delta)(z, labels()), expected, rtol=0, atol=1e-6)


@given(st.floats(0.01, 20), st.sampled_from(ORDERS), st.integers(0, 100))
def test_norm_is_capped_and_clipping_twice_changes_nothing(tau, p, seed):
    z = logits(seed=seed).float()
    once = clip_logits(z, tau, p=p)
    assert (norms(once, p) <= tau * (1 + 1e-6)).all()
    assert_close(clip_logits(once, tau, p=p), once, rtol=1e-6, atol=1e-6)


def test_continuous_at_the_threshold_and_constant_beyond():
    u = F.normalize(logits(), dim=1)
    assert_close(clip_logits(u * 1.5 * (1 - 1e-9), 1.5), clip_logits(u * 1.5 * (1 + 1e-9), 1.5), rtol=0, atol=1e-8)
    assert_close(clip_logits(u * 2, 1.5), clip_logits(u * 2000, 1.5))
    jump = clip_logits(u * 1.5 * (1 + 1e-9), 1.5, 1 / 1.5)
    assert_close(norms(jump), torch.full((40,), 1 / 1.5).double(), rtol=0, atol=1e-6)


@given(st.floats(0.01, 20), st.one_of(st.none(), st.floats(0.01, 5)), st.sampled_from(ORDERS), st.integers(0, 50))
def test_order_of_the_logits_is_kept(tau, delta, p, seed):
    z = logits(seed=seed)
    clipped = clip_logits(z, tau, delta, p)
    order = z.argsort(1)
    assert (clipped.gather(1, order).diff(dim=1) >= 0).all()
    assert torch.equal(clipped.argmax(1), z.argmax(1))


@pytest.mark.parametrize("delta", [None, 0.5])
def test_clipped_rows_have_no_radial_gradient_and_others_that_of_the_base(delta):
    z = logits().float().requires_grad_()
    tau = float(norms(z.detach()).median())
    LogitClip(tau, delta)(z, labels()).sum().backward()
    assert z.grad is not None
    clipped = norms(z.detach()) > tau
    assert 0 < clipped.sum() < 40
    assert ((z.detach() * z.grad).sum(1)[clipped].abs() < 1e-5).all()
    plain = z.detach().clone().requires_grad_()
    F.cross_entropy(plain, labels(), reduction="sum").backward()
    assert plain.grad is not None
    assert torch.equal(z.grad[~clipped], plain.grad[~clipped])


def test_gradient_of_a_clipped_row_is_the_projected_one():
    z, tau, delta = (logits() + 0.5).requires_grad_(), 0.4, 0.7
    (gradient,) = torch.autograd.grad(LogitClip(tau, delta)(z, labels()).sum(), z)
    n = norms(z.detach())
    u = z.detach() / n[:, None]
    g = (delta * u).softmax(1) - F.one_hot(labels(), 7)
    assert (n > tau).all()
    assert_close(gradient, (delta / n)[:, None] * (g - u * (u * g).sum(1, keepdim=True)))


def test_rows_do_not_touch_each_other():
    z = logits().float()
    alone = torch.cat([clip_logits(row[None], 1.0) for row in z])
    assert torch.equal(clip_logits(z, 1.0), alone)
    changed = z.clone()
    changed[3] *= 1e6
    assert torch.equal(clip_logits(changed, 1.0)[4:], clip_logits(z, 1.0)[4:])


@pytest.mark.parametrize("p", [2.0, 4.0])
def test_gradient_equals_finite_differences(p):
    z = logits(12)
    far = z[(norms(z, p) - 1.5).abs() > 0.05].requires_grad_()
    assert 0 < (norms(far.detach(), p) > 1.5).sum() < len(far)
    assert torch.autograd.gradcheck(lambda x: LogitClip(1.5, 0.8, p)(x, labels(len(far))), (far,), atol=1e-6)


@pytest.mark.parametrize("p", ORDERS)
def test_a_row_of_zeros_has_the_gradient_of_the_base(p):
    z = torch.zeros(3, 4, requires_grad=True)
    LogitClip(0.5, p=p)(z, torch.arange(3)).sum().backward()
    assert z.grad is not None
    assert_close(z.grad, 0.25 - F.one_hot(torch.arange(3), 4).float())


def test_rule_of_the_released_code_on_request():
    temp = 1.5
    u = F.normalize(logits(), dim=1)
    assert torch.equal(clip_logits(1.2 * u, temp, 1 / temp), 1.2 * u)
    assert_close(norms(clip_logits(1.6 * u, temp, 1 / temp)), torch.full((40,), 1 / 1.5).double())
    # with temp < 1 clipped rows grow
    assert_close(norms(clip_logits(0.9 * u, 0.5, 2.0)), torch.full((40,), 2.0).double())


def test_it_is_no_elementwise_clamp_and_not_shift_invariant():
    z = torch.tensor([[3.0, 4.0]])
    assert_close(clip_logits(z, 1.0), torch.tensor([[0.6, 0.8]]))
    part, y = LogitClip(1.0), torch.tensor([0])
    assert abs(float(part(z, y) - part(z + 10, y))) > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_takes_the_norm_in_float32(dtype):
    z = torch.full((1, 1000), 200.0).to(dtype)
    clipped = clip_logits(z, 10.0)
    assert clipped.dtype == dtype
    assert float(norms(clipped.float())) == pytest.approx(10, rel=0.01)


def test_nan_stays_nan_and_other_rows_do_not():
    z = logits(4).float()
    z[1, 2] = math.nan
    losses = LogitClip(1.0)(z, labels(4))
    assert torch.equal(losses.isnan(), torch.tensor([False, True, False, False]))


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_a_norm_that_overflows_is_not_clipped_out_of_sight(p):
    largest = torch.finfo(torch.float32).max ** (1 / p)
    z = torch.tensor([[1.0, -1.0, 1.0], [0.9, -0.9, 0.9], [0.1, -0.1, 0.1]]) * largest
    losses = LogitClip(1.0, p=p)(z, labels(3))
    assert torch.equal(losses.isfinite(), torch.tensor([False, False, True]))
    assert_close(losses[2], LogitClip(1.0, p=p)(z.double(), labels(3))[2].float())
    wide = clip_logits(z.double(), 1.0, p=p)
    assert_close(norms(wide, p), torch.ones(3).double())


def test_a_run_whose_logits_diverge_stops(small_digits: Dataset):
    run = Run(build_model("mlp:width=8", small_digits), small_digits, loss=LogitClip(), settings=Settings(epochs=1))
    with torch.no_grad():
        for parameter in cast(Any, run.model).get_classifier().parameters():
            parameter *= 1e21
    with pytest.raises(NonFinite, match="LogitClip"):
        fit(run, max_steps=1)


def test_an_empty_batch_gives_no_losses():
    assert LogitClip(1.0)(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_mixtures_and_other_bases():
    z = logits()
    target = Target.hard(labels()).mix(torch.arange(40).roll(1), torch.tensor(0.3))
    part = LogitClip(1.0)
    expected = 0.3 * part(z, labels()) + 0.7 * part(z, labels().roll(1))
    assert_close(losses_of(part, z, target), expected, rtol=1e-6, atol=1e-6)
    smooth = LogitClip(1.0, base=LabelSmoothing(0.2))
    assert_close(smooth(z, labels()), LabelSmoothing(0.2)(clip_logits(z, 1.0), labels()))

    class AbsoluteError:
        def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return 1 - logits.softmax(1).gather(1, labels[:, None])[:, 0]

    bare = LogitClip(1.0, base=AbsoluteError())
    by_hand = 0.3 * bare(z, labels()) + 0.7 * bare(z, labels().roll(1))
    assert_close(losses_of(bare, z, target), by_hand, rtol=1e-6, atol=1e-6)


def test_predictions_come_from_raw_logits_and_needs_from_the_base():
    z = logits()
    assert torch.equal(LogitClip(0.1).test_logits(z), z)
    base = LDAM([1] * 7, scale=20.0)
    assert torch.equal(LogitClip(0.1, base=base).test_logits(z), 20 * z)
    assert "cosine_head" in traits_of(LogitClip(base=base)).needs
    assert not traits_of(LogitClip()).needs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.0}, "tau must be > 0"),
        ({"tau": -1.0}, "tau must be > 0"),
        ({"tau": math.nan}, "tau must be > 0"),
        ({"delta": 0.0}, "delta must be > 0"),
        ({"delta": math.inf}, "delta must be > 0 and finite"),
        ({"p": 0.5}, "p must be >= 1"),
        ({"p": math.nan}, "p must be >= 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LogitClip(**options)
    with pytest.raises(ValueError, match=message):
        clip_logits(logits(), **{"tau": 1.0, **options})


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_logits_must_be_two_dimensional(shape):
    for tau in (1.0, math.inf):
        with pytest.raises(ValueError, match=r"logits must be \(B, C\)"):
            clip_logits(torch.zeros(shape), tau)


def test_a_run_keeps_its_losses_between_the_bounds(small_digits: Dataset):
    settings = Settings(epochs=8, batch_size=40, lr=0.1)
    run = Run(
        lambda seed: build_model("mlp:width=32", small_digits, seed=seed),
        small_digits,
        loss=LogitClip(1.0),
        settings=settings,
    )
    means: list[float] = []
    fit(run, after_epoch=lambda run, loss: means.append(loss))
    floor = math.log1p(9 * math.exp(-math.sqrt(10 / 9)))
    assert floor < means[-1] < means[0] < math.log1p(9 * math.exp(math.sqrt(2)))
    raw = run.predict(small_digits)
    assert (raw.argmax(1) == small_digits.labels).double().mean() > 0.9
    assert raw.norm(dim=1).max() > 1.01
