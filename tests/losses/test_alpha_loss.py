"""Alpha-loss: the losses it runs through, its gradient, its minimiser, and where it stays finite."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.assemble import build, resolve
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.alpha_loss import AlphaLoss, alpha_loss
from weathered.losses.cross_entropy import CrossEntropy
from weathered.nn.build import build_model

ALPHAS = [0.5, 0.8, 1.0, 2.0, 10 / 3, 8.0, math.inf]


def logits(rows: int = 24, classes: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=generator(seed, "logits"), dtype=dtype)


def labels(rows: int = 24, classes: int = 5) -> torch.Tensor:
    return torch.arange(rows) % classes


def probability(z: torch.Tensor) -> torch.Tensor:
    return z.softmax(1).gather(1, labels(*z.shape)[:, None])[:, 0]


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a not in (1.0, math.inf)])
def test_is_the_formula_of_the_paper(alpha):
    expected = alpha / (alpha - 1) * (1 - probability(logits()) ** (1 - 1 / alpha))
    assert_close(AlphaLoss(alpha)(logits(), labels()), expected)
    assert_close(alpha_loss(logits(), labels(), alpha), expected)


def test_alpha_one_is_cross_entropy_exactly_and_the_map_is_continuous_there():
    for dtype in (torch.float32, torch.float64):
        z = logits(dtype=dtype)
        plain = F.cross_entropy(z, labels(), reduction="none")
        assert torch.equal(AlphaLoss(1.0)(z, labels()), plain)
        for alpha in (1 - 1e-4, 1 + 1e-4):
            assert_close(AlphaLoss(alpha)(z, labels()), plain, rtol=1e-3, atol=0)


@given(st.floats(0.3, 20), st.integers(0, 50))
def test_continuous_in_alpha(alpha, seed):
    z = logits(seed=seed)
    a, b = AlphaLoss(alpha)(z, labels()), AlphaLoss(alpha * (1 + 1e-9))(z, labels())
    assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_infinity_is_one_minus_the_probability():
    assert_close(AlphaLoss(math.inf)(logits(), labels()), 1 - probability(logits()))
    assert_close(AlphaLoss(1e9)(logits(), labels()), AlphaLoss(math.inf)(logits(), labels()), rtol=1e-6, atol=1e-6)


def test_one_half_is_the_exponential_loss():
    assert_close(AlphaLoss(0.5)(logits(), labels()), 1 / probability(logits()) - 1, rtol=1e-10, atol=1e-10)
    z, y = logits(classes=2), labels(classes=2)
    margin = z.gather(1, y[:, None])[:, 0] - z.gather(1, 1 - y[:, None])[:, 0]
    assert_close(AlphaLoss(0.5)(z, y), torch.exp(-margin), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_is_that_of_cross_entropy_times_a_power_of_the_probability(alpha):
    z = logits().requires_grad_()
    (gradient,) = torch.autograd.grad(AlphaLoss(alpha)(z, labels()).sum(), z)
    p = z.detach().softmax(1)
    power = probability(z.detach())[:, None] ** (1 - 1 / alpha)
    assert_close(gradient, power * (p - F.one_hot(labels(), 5)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_unlikely_labels_are_insisted_on_below_one_and_ignored_above(alpha):
    z = torch.tensor([[5.0, 0.0]], dtype=torch.float64).requires_grad_()
    found, plain = (
        torch.autograd.grad(part(z, torch.tensor([1])).sum(), z)[0].norm()
        for part in (AlphaLoss(alpha), CrossEntropy())
    )
    assert (found > 10 * plain) if alpha < 1 else (found < plain / 10)


@given(st.floats(1.01, 50), st.integers(0, 50))
def test_bounds_above_one(alpha, seed):
    losses = AlphaLoss(alpha)(20 * logits(seed=seed), labels())
    assert (losses >= 0).all()
    assert (losses <= alpha / (alpha - 1) * (1 + 1e-12)).all()


def test_bound_is_reached_and_zero_means_certainty():
    z = torch.tensor([[-1e4, 0.0], [1e4, 0.0]])
    assert_close(AlphaLoss(4.0)(z, torch.tensor([0, 0])), torch.tensor([4 / 3, 0.0]))
    assert (AlphaLoss(4.0)(logits(), labels()) > 0).all()


@given(st.floats(0.3, 20), st.floats(0.3, 20), st.integers(0, 50))
def test_does_not_grow_with_alpha(a, b, seed):
    z = logits(seed=seed)
    low, high = sorted((a, b))
    assert (AlphaLoss(high)(z, labels()) <= AlphaLoss(low)(z, labels()) * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("alpha", [0.6, 1.0, 2.0, 4.0])
def test_minimiser_is_a_power_of_the_posterior_and_dividing_by_alpha_undoes_it(alpha):
    eta = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    z = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [z], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = AlphaLoss(alpha).soft(z, eta).sum()
        loss.backward()
        return loss

    solver.step(closure)  # pyright: ignore[reportArgumentType]
    tilted = eta**alpha / (eta**alpha).sum()
    assert_close(z.detach().softmax(1), tilted, rtol=0, atol=1e-7)
    assert_close((z.detach() / alpha).softmax(1), eta, rtol=0, atol=1e-7)
    if alpha != 1:
        least = alpha / (alpha - 1) * (1 - (eta**alpha).sum() ** (1 / alpha))
        assert_close(AlphaLoss(alpha).soft(z.detach(), eta)[0], least, rtol=0, atol=1e-8)
    assert int(z.argmax()) == 0


@pytest.mark.parametrize("alpha", ALPHAS)
def test_shifts_change_nothing(alpha):
    assert_close(AlphaLoss(alpha)(logits() + 100, labels()), AlphaLoss(alpha)(logits(), labels()))


@pytest.mark.parametrize(("alpha", "convex"), [(0.3, True), (0.5, True), (1.0, True), (1.5, False), (4.0, False)])
def test_convex_in_the_margin_up_to_one_only(alpha, convex):
    margins = torch.linspace(-35, 8, 4001, dtype=torch.float64)
    z = torch.stack([margins, torch.zeros_like(margins)], 1)
    losses = AlphaLoss(alpha)(z, torch.zeros(len(z), dtype=torch.long))
    second = losses[2:] - 2 * losses[1:-1] + losses[:-2]
    assert bool((second >= -1e-12 * losses[1:-1].abs().clamp_min(1)).all()) == convex


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_logits_stay_finite_and_their_gradient_too(alpha, dtype):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 0])
    target = F.one_hot(y, 3).to(dtype)
    for losses in (AlphaLoss(alpha)(z, y), AlphaLoss(alpha).soft(z, target)):
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()
        assert float(losses[0].detach()) == 0
    if alpha <= 1:
        assert gradient[1].norm() > 1, "the worst samples must keep a gradient"


@pytest.mark.parametrize("alpha", ALPHAS)
def test_distributions_are_averaged_as_the_engine_does(alpha):
    part, z = AlphaLoss(alpha), logits()
    assert_close(part.soft(z, F.one_hot(labels(), 5).double()), part(z, labels()))
    target = Target.hard(labels()).mix(torch.arange(24).roll(1), torch.tensor(0.3))
    expected = 0.3 * part(z, labels()) + 0.7 * part(z, labels().roll(1))
    assert_close(losses_of(part, z, target), expected, rtol=1e-5, atol=1e-6)


def test_one_loss_per_sample_and_labels_outside_are_errors_as_in_cross_entropy():
    z = logits()
    assert AlphaLoss()(z, labels()).shape == (24,)
    assert AlphaLoss()(z[:0], labels(0)).shape == (0,)
    assert torch.equal(z, logits())
    for label in (-100, -1, 5):
        with pytest.raises(ValueError, match="labels must be in"):
            AlphaLoss()(z[:1], torch.tensor([label]))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, -math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be > 0"):
        AlphaLoss(alpha)
    with pytest.raises(ValueError, match="alpha must be > 0"):
        alpha_loss(logits(), labels(), alpha)


def test_infinity_can_be_asked_for_by_name(digits: Dataset):
    (use,) = resolve(["alpha-loss:alpha=inf"])
    assert str(use) == "alpha-loss:alpha=inf"
    assert build(use, digits).q == 1.0


def test_a_small_alpha_helps_a_rare_class_in_unfinished_training(digits: Dataset):
    """Ten eights against 120 threes, linear models of ten seeds side by side: recall of the eights."""
    pixels = digits.floats(torch.arange(len(digits))).flatten(1)
    threes, eights = ((digits.labels == k).nonzero()[:, 0] for k in (3, 8))
    splits = [torch.randperm(60, generator=generator(seed, "rare")) for seed in range(10)]
    x = torch.stack([pixels[torch.cat([eights[s[:10]], threes[:120]])] for s in splits])
    y = torch.tensor([1] * 10 + [0] * 120).expand(10, -1)
    unseen = torch.stack([pixels[eights[60:]] for _ in splits])
    recall = []
    for alpha in (0.8, 1.0, 2.0):
        weight, bias = torch.zeros(10, 64, 2, requires_grad=True), torch.zeros(10, 1, 2, requires_grad=True)
        rng = generator(0, "order")
        for _ in range(400):
            rows = torch.randint(130, (32,), generator=rng)
            losses = AlphaLoss(alpha)((x[:, rows] @ weight + bias).flatten(0, 1), y[:, rows].flatten())
            gradients = torch.autograd.grad(losses.sum() / 32, (weight, bias))
            with torch.no_grad():
                for parameter, gradient in zip((weight, bias), gradients, strict=True):
                    parameter -= 0.1 * gradient
        recall.append(float(((unseen @ weight + bias).argmax(2) == 1).double().mean()))
    assert recall[0] > recall[1] > recall[2]


def test_a_run_memorises_fewer_wrong_labels_than_with_cross_entropy(small_digits: Dataset):
    wrong = torch.arange(200) % 5 == 0
    given_labels = torch.where(wrong, (small_digits.labels + 1) % 10, small_digits.labels)
    noisy = small_digits.replace(labels=given_labels)
    kept = []
    for part in (CrossEntropy(), AlphaLoss(4.0)):
        settings = Settings(epochs=40, batch_size=40, lr=0.1)
        run = Run(lambda seed: build_model("mlp:width=64", noisy, seed=seed), noisy, loss=part, settings=settings)
        kept.append(float((fit(run).predict(noisy).argmax(1) == given_labels)[wrong].double().mean()))
    assert kept[0] > 0.8
    assert kept[1] < kept[0] - 0.3
