"""MixUp: exact ends, labels mixed with the inputs, the distribution of shares, and a run."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.rng import draw_beta, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.mixing.mixup import MixUp, mixup
from weathered.nn.build import build_model


def images(size: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, 3, 5, 4, generator=generator(seed, "images"))


def permutation(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(size, generator=generator(seed, "permutation"))


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_share_one_keeps_and_share_zero_swaps_bit_for_bit(layout, per_sample):
    x, partner = images().contiguous(memory_format=layout), permutation(6)
    one = torch.ones(6, dtype=torch.float64) if per_sample else 1.0
    assert torch.equal(mixup(x, one, partner), x)
    assert torch.equal(mixup(x, one * 0, partner), x[partner])


@given(st.floats(0, 1))
def test_own_partner_gives_the_sample_back(lam):
    x = images()
    assert torch.equal(mixup(x, lam, torch.arange(6)), x)


@given(st.floats(0, 1), st.integers(0, 50))
def test_is_the_convex_combination(lam, seed):
    x, partner = images(seed=seed).double(), permutation(6, seed)
    assert_close(mixup(x, lam, partner), lam * x + (1 - lam) * x[partner], rtol=1e-12, atol=1e-12)
    shares = torch.linspace(0, lam, 6, dtype=torch.float64)
    wide = shares[:, None, None, None]
    assert_close(mixup(x, shares, partner), wide * x + (1 - wide) * x[partner], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["indices", "one_hot", "soft"])
@pytest.mark.parametrize("loss_name", ["cross_entropy", "bce"])
def test_mixed_losses_equal_the_loss_of_the_mixed_target(kind, loss_name):
    logits = torch.randn(6, 4, generator=generator(0, "logits"))
    labels = torch.tensor([0, 3, 2, 2, 1, 0])
    soft = torch.rand(6, 4, generator=generator(0, "soft"))
    given_labels = {
        "indices": labels,
        "one_hot": F.one_hot(labels, 4).float(),
        "soft": soft / soft.sum(1, keepdim=True),
    }[kind]
    dense = F.one_hot(labels, 4).float() if kind == "indices" else given_labels
    partner, lam = permutation(6), 0.3

    def loss(target: torch.Tensor) -> torch.Tensor:
        if loss_name == "cross_entropy":
            return F.cross_entropy(logits, target, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    class HardLoss:
        def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return loss(F.one_hot(labels, 4).float())

    mixed = Batch.of(torch.rand(6, 2), given_labels).target.mix(partner, torch.tensor(lam))
    by_losses = lam * loss(dense) + (1 - lam) * loss(dense[partner])
    assert_close(by_losses, loss(mixed.dense(4)), rtol=1e-6, atol=1e-6)
    assert_close(losses_of(HardLoss(), logits, mixed), by_losses, rtol=1e-6, atol=1e-6)


def test_squared_error_is_not_linear_and_differs_by_the_exact_amount():
    a, b, p = torch.rand(3, 8, 4, generator=generator(0, "square"), dtype=torch.float64)
    lam = 0.3
    left = (p - (lam * a + (1 - lam) * b)).square().sum(1)
    right = lam * (p - a).square().sum(1) + (1 - lam) * (p - b).square().sum(1)
    correction = lam * (1 - lam) * (a - b).square().sum(1)
    assert_close(left, right - correction, rtol=1e-5, atol=0)
    assert (correction > 1e-3).all()

    class Brier:
        def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return (logits - F.one_hot(labels, 4)).square().sum(1)

    # the engine mixes losses: the sum over hard labels, not the loss of the mean label
    mixed = Target.hard(torch.arange(4).repeat(2)).mix(torch.arange(8).roll(1), torch.tensor(lam))
    of_target = (p - mixed.dense(4)).square().sum(1)
    assert_close(losses_of(Brier(), p, mixed) - of_target, torch.full((8,), lam * (1 - lam) * 2).double())


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixed_targets_are_distributions_of_at_most_two_labels(per_sample):
    batch = Batch.of(images(), torch.tensor([0, 1, 2, 3, 4, 4]))
    for seed in range(20):
        dense = MixUp(per_sample=per_sample)(batch, generator(seed)).target.dense(5)
        assert_close(dense.sum(1), torch.ones(6), atol=1e-6, rtol=0)
        assert ((dense >= 0) & (dense <= 1)).all()
        assert ((dense > 0).sum(1) <= 2).all()


def test_batch_mean_is_kept_under_one_share_only():
    batch = Batch.of(images(64), torch.arange(64))
    together, each = (MixUp(per_sample=flag)(batch, generator(1)).x.mean(0) for flag in (False, True))
    assert_close(together, batch.x.mean(0), atol=1e-5, rtol=0)
    assert (each - batch.x.mean(0)).abs().max() > 1e-3


def test_swapping_shares_and_inverting_the_permutation_gives_the_same_pairs():
    x, partner = images().double(), permutation(6)
    target = Target.hard(torch.arange(6))
    inverse = partner.argsort()
    a = torch.cat([mixup(x, 0.3, partner).flatten(1), target.mix(partner, torch.tensor(0.3)).dense(6)], 1)
    b = torch.cat([mixup(x, 0.7, inverse).flatten(1), target.mix(inverse, torch.tensor(0.7)).dense(6)], 1)
    assert_close(a[partner.argsort()], b, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("alpha", "product", "smaller"), [(0.2, 0.0714, 0.101), (1.0, 1 / 6, 0.25), (2.0, 0.2, None)])
def test_moments_of_the_share(alpha, product, smaller):
    lam = draw_beta(alpha, generator(0, "moments"), (100_000,))
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.003)
    assert float((lam * (1 - lam)).mean()) == pytest.approx(product, abs=0.003)
    assert product == pytest.approx(alpha / (2 * (2 * alpha + 1)), abs=1e-4)
    if smaller is not None:
        assert float(torch.minimum(lam, 1 - lam).mean()) == pytest.approx(smaller, abs=0.003)


def test_drawn_shares_follow_alpha():
    batch = Batch.of(torch.eye(200), torch.arange(200))
    shares = torch.cat(
        [MixUp(8.0, per_sample=True)(batch, generator(s)).target.weights[0] for s in range(100)]
    ).double()
    assert float((shares * (1 - shares)).mean()) == pytest.approx(8 / 34, abs=0.003)


def test_commutes_with_normalisation():
    x, partner = images(), permutation(6)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.1])[:, None, None]
    assert_close(mixup((x - mean) / std, 0.3, partner), (mixup(x, 0.3, partner) - mean) / std, atol=1e-5, rtol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_draws_come_from_the_given_generator_only(per_sample):
    batch = Batch.of(images(), torch.arange(6))
    before = torch.get_rng_state()
    first, second = (MixUp(per_sample=per_sample)(batch, generator(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.target.weights, second.target.weights)
    assert not torch.equal(first.x, MixUp(per_sample=per_sample)(batch, generator(4)).x)


def test_low_precision_is_blended_in_float32():
    x, partner = images(), permutation(6)
    for dtype in (torch.float16, torch.bfloat16):
        low = x.to(dtype)
        for lam in (0.3, torch.full((6,), 0.3, dtype=torch.float64)):
            exact = 0.3 * low.float() + 0.7 * low.float()[partner]
            assert torch.equal(mixup(low, lam, partner), exact.to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_sample", [False, True])
def test_layout_is_kept_and_input_untouched(layout, per_sample):
    x = images().contiguous(memory_format=layout)
    before = x.clone()
    mixed = MixUp(per_sample=per_sample)(Batch.of(x, torch.arange(6)), generator(0))
    assert torch.equal(x, before)
    assert mixed.x.is_contiguous(memory_format=layout)
    assert_close(mixed.x, MixUp(per_sample=per_sample)(Batch.of(images(), torch.arange(6)), generator(0)).x)


def test_rows_of_tables_are_mixed():
    batch = MixUp()(Batch.of(torch.eye(7), torch.arange(7)), generator(0))
    assert_close(batch.x, batch.target.dense(7), atol=1e-6, rtol=0)


def test_keep_dominant_gives_the_own_label_at_least_half():
    batch = Batch.of(torch.eye(50), torch.arange(50))
    for seed in range(20):
        mixed = MixUp(per_sample=True, keep_dominant=True)(batch, generator(seed))
        assert (mixed.target.weights[0] >= 0.5).all()
        assert (MixUp(keep_dominant=True)(batch, generator(seed)).target.weights[0] >= 0.5).all()
        assert_close(mixed.x, mixed.target.dense(50), atol=1e-6, rtol=0)


def test_probability_is_the_chance_of_mixing():
    batch = Batch.of(torch.eye(200), torch.arange(200))
    assert MixUp(probability=0.0)(batch, generator(0)) is batch
    mixed = [MixUp(probability=0.3)(batch, generator(s)).target.is_hard for s in range(300)]
    assert sum(mixed) / 300 == pytest.approx(0.7, abs=0.1)
    shares = MixUp(probability=0.3, per_sample=True)(batch, generator(1)).target.weights[0]
    assert float((shares < 1).double().mean()) == pytest.approx(0.3, abs=0.1)


def test_one_sample_is_its_own_partner():
    batch = Batch.of(images(1), torch.tensor([2]))
    mixed = MixUp()(batch, generator(0))
    assert torch.equal(mixed.x, batch.x)
    assert_close(mixed.target.dense(3), torch.tensor([[0.0, 0.0, 1.0]]))


def test_gradients_reach_inputs_with_their_shares():
    x = images(4).requires_grad_()
    partner = torch.tensor([1, 2, 3, 0])
    mixup(x, 0.3, partner)[0].sum().backward()
    expected = torch.tensor([0.3, 0.7, 0.0, 0.0])[:, None, None, None].expand_as(x)
    assert x.grad is not None
    assert_close(x.grad, expected)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be > 0"):
        MixUp(alpha)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_bad_probability(probability):
    with pytest.raises(ValueError, match="probability must be in"):
        MixUp(probability=probability)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused(dtype):
    with pytest.raises(ValueError, match="manifold mixup"):
        MixUp()(Batch.of(torch.ones(4, 3).to(dtype), torch.arange(4)), generator(0))


@pytest.mark.parametrize(
    ("lam", "partner", "message"),
    [
        (1.5, [0, 1, 2, 3, 4, 5], r"lam must be in \[0, 1\], got 1.5"),
        (math.nan, [0, 1, 2, 3, 4, 5], "lam must be in"),
        (torch.tensor([0.1, -0.2, 0.0, 0.0, 0.0, 0.0]), [0, 1, 2, 3, 4, 5], "got -0.2"),
        (torch.rand(5), [0, 1, 2, 3, 4, 5], "one for each of 6 samples"),
        (0.5, [0, 1], "one position for each of 6"),
    ],
)
def test_bad_arguments(lam, partner, message):
    with pytest.raises(ValueError, match=message):
        mixup(images(), lam, torch.tensor(partner))


def test_a_list_of_images_is_refused():
    with pytest.raises(ValueError, match="one tensor"):
        mixup([torch.rand(3, 4, 4), torch.rand(3, 5, 5)], 0.5, torch.arange(2))  # pyright: ignore[reportArgumentType]


def test_labels_that_do_not_fit_are_named():
    mixed = MixUp()(Batch.of(images(3), torch.tensor([0, 1, 7])), generator(0))
    with pytest.raises(ValueError, match="got 7"):
        mixed.target.dense(5)
    with pytest.raises(ValueError, match="one column for each of 3 classes, got 5"):
        Target.soft(torch.full((2, 5), 0.2)).dense(3)
    with pytest.raises(ValueError, match="3 inputs but 2 labels"):
        Batch.of(images(3), torch.tensor([0, 1]))


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_run_learns_from_mixtures(per_sample):
    rng = generator(0, "run")
    labels = torch.arange(96) % 3
    x = torch.randn(96, 8, generator=rng) + 3 * F.one_hot(labels, 8)
    data = Dataset.of(x, labels)
    settings = Settings(epochs=40, batch_size=32, lr=0.05)
    run = Run(
        lambda seed: build_model("mlp:width=16", data, seed=seed),
        data,
        transforms=[MixUp(per_sample=per_sample)],
        settings=settings,
    )
    fit(run)
    assert (run.predict(data).argmax(1) == labels).double().mean() > 0.9
