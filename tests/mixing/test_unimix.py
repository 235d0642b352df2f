"""UniMix: who becomes a partner, how shares are distributed, its limits, and what may stand beside it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.facts import check
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import draw_beta, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.bayias import Bayias
from weathered.mixing.mixup import MixUp, mixup
from weathered.mixing.unimix import UniMix, partner_probabilities, rarity_ratio, wrapped_share
from weathered.nn.build import build_model
from weathered.procedures.jocor import JoCoR

COUNTS = [500, 200, 100, 50]
N = torch.tensor(COUNTS).double()
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def images(size: int = 6) -> torch.Tensor:
    return torch.rand(size, 3, 5, 4, generator=generator(0, "images"))


def labels_of(size: int, seed: int = 0) -> torch.Tensor:
    """Labels drawn from the class shares of training."""
    return torch.multinomial(N, size, True, generator=generator(seed, "labels"))


def shares(ratio: float, alpha: float, size: int = 100_000) -> torch.Tensor:
    beta = draw_beta(alpha, generator(0, "shares"), (size,))
    return wrapped_share(torch.full_like(beta, ratio), beta)


@pytest.mark.parametrize("tau", [0.0, -0.1, -0.5, -1.0])
def test_partner_classes_follow_the_power_of_their_counts(tau):
    part, drawn = UniMix(COUNTS, tau=tau), torch.zeros(4)
    for seed in range(50):
        labels = labels_of(20_000, seed)
        partner, _ = part.draw(labels, generator(seed))
        drawn += labels[partner].bincount(minlength=4)
    expected = N ** (1 + tau) / (N ** (1 + tau)).sum()
    assert_close(drawn.double() / drawn.sum(), expected, rtol=0.02, atol=0)


def test_probabilities_are_the_power_of_the_count_within_the_batch():
    counts = N[torch.tensor([0, 0, 1, 3])]
    assert_close(partner_probabilities(counts, -0.5), counts**-0.5 / (counts**-0.5).sum(), rtol=1e-12, atol=0)
    assert torch.equal(partner_probabilities(counts, 0.0), torch.full((4,), 0.25, dtype=torch.float64))
    rare_only = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert_close(partner_probabilities(counts, -1e4), rare_only, atol=0, rtol=0)


def test_a_class_that_the_batch_lacks_is_never_a_partner():
    labels = torch.tensor([0, 1, 1, 0, 2])
    for seed in range(200):
        target = UniMix(COUNTS, tau=-3.0)(Batch.of(torch.zeros(5, 1), labels), generator(seed)).target
        assert not (target.labels == 3).any()


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_ratio_of_swapped_roles_is_the_rest_and_equal_counts_give_a_half(a, b):
    own, other = torch.tensor([float(a)]).double(), torch.tensor([float(b)]).double()
    assert float(rarity_ratio(own, other) + rarity_ratio(other, own)) == pytest.approx(1, abs=1e-15)
    assert float(rarity_ratio(own, own)) == 0.5


def test_the_share_leans_to_the_rarer_sample():
    assert float(rarity_ratio(N[3:], N[:1])) == pytest.approx(500 / 550)
    part, labels = UniMix(COUNTS, alpha=0.01, tau=0.0), torch.tensor([0, 3] * 200)
    partner, lam = part.draw(labels, generator(0))
    rare_with_frequent = lam[(labels == 3) & (labels[partner] == 0)]
    frequent_with_rare = lam[(labels == 0) & (labels[partner] == 3)]
    assert float(rare_with_frequent.median()) == pytest.approx(500 / 550, abs=1e-3)
    assert float(frequent_with_rare.median()) == pytest.approx(50 / 550, abs=1e-3)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.9])
def test_alpha_one_gives_uniform_shares_whatever_the_counts(ratio):
    assert stats.kstest(shares(ratio, 1.0).numpy(), "uniform").pvalue > 0.001


def near(ratio: float, alpha: float) -> float:
    """How many shares lie within 0.01 of the ratio on a circle of length 1."""
    distance = (shares(ratio, alpha) - ratio).abs()
    return float((torch.minimum(distance, 1 - distance) < 0.01).double().mean())


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.8])
def test_shares_gather_at_the_ratio_as_alpha_falls(ratio, alpha):
    assert near(ratio, alpha) == pytest.approx(2 * stats.beta(alpha, alpha).cdf(0.01), abs=0.005)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.9])
def test_a_tiny_alpha_gives_the_ratio_itself(ratio):
    assert near(ratio, 1e-3) >= 0.98


@pytest.mark.parametrize(("ratio", "mean"), [(0.01, 0.488), (0.1, 0.469), (0.5, 0.5), (0.9, 0.532)])
def test_counts_hardly_move_the_mean_of_the_share(ratio, mean):
    drawn = shares(ratio, 0.8, 400_000)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.002)
    assert float(drawn.mean()) == pytest.approx(ratio + stats.beta(0.8, 0.8).cdf(1 - ratio) - 0.5, abs=0.002)


@pytest.mark.parametrize(("alpha", "peaked"), [(0.5, True), (0.8, True), (2.0, False)])
def test_the_ratio_is_the_likeliest_share_below_alpha_one_and_the_least_likely_above(alpha, peaked):
    density = torch.histc(shares(0.3, alpha), bins=20, min=0, max=1)
    beside = density[5:7].sum()  # the two bins that meet at 0.3
    elsewhere = torch.cat([density[:5], density[7:]])
    assert (beside / 2 > elsewhere).all() if peaked else (beside / 2 < elsewhere).all()


def test_sums_above_one_wrap_and_are_not_cut():
    ratio = torch.tensor([0.75, 0.75, 0.75, 0.0, 1.0, 1.0]).double()
    beta = torch.tensor([0.5, 0.25, 0.0, 0.0, 0.0, 1.0]).double()
    assert torch.equal(wrapped_share(ratio, beta), torch.tensor([0.25, 1.0, 0.75, 0.0, 1.0, 1.0]).double())


@given(st.floats(0.01, 20), st.floats(-5, 0), st.integers(0, 1000))
def test_shares_and_targets_are_convex_combinations(alpha, tau, seed):
    batch = Batch.of(torch.eye(16), labels_of(16, seed))
    part = UniMix(COUNTS, alpha, tau)
    partner, lam = part.draw(batch.target.single(), generator(seed))
    assert ((lam >= 0) & (lam <= 1)).all()
    mixed = part(batch, generator(seed))
    wide = lam[:, None].float()
    assert_close(mixed.x, wide * batch.x + (1 - wide) * batch.x[partner], atol=1e-6, rtol=0)
    labels = F.one_hot(batch.target.single(), 4)
    assert_close(mixed.target.dense(4), wide * labels + (1 - wide) * labels[partner], atol=1e-6, rtol=0)


def test_share_one_keeps_the_batch_bit_for_bit():
    x, one = images(), torch.ones(6, dtype=torch.float64)
    partner = torch.tensor([3, 3, 0, 1, 5, 2])
    assert torch.equal(mixup(x, one, partner), x)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.equal(Target.hard(labels).mix(partner, one).dense(4), F.one_hot(labels, 4).float())


def test_equal_counts_are_mixup_with_a_share_for_each_sample():
    batch = Batch.of(torch.eye(64), torch.arange(64) % 4)
    part = UniMix([30] * 4, 0.8, -0.5)
    rng = generator(0)
    partner = torch.multinomial(torch.ones(64).double(), 64, True, generator=rng)
    lam = (0.5 + draw_beta(0.8, rng, (64,))) % 1
    mixed = part(batch, generator(0))
    assert_close(mixed.x, mixup(batch.x, lam, partner))
    assert_close(mixed.target.dense(4), batch.target.mix(partner, lam).dense(4))
    drawn = torch.cat([part.draw(batch.target.single(), generator(s))[1] for s in range(300)])
    expected = (0.5 + stats.beta(0.8, 0.8).rvs(20_000, random_state=0)) % 1
    assert stats.ks_2samp(drawn.numpy(), expected).pvalue > 0.001


@given(st.integers(1, 1000), st.floats(-5, 0), st.integers(0, 100))
def test_only_ratios_of_counts_matter(factor, tau, seed):
    labels = labels_of(32, seed)
    here, there = (UniMix([k * n for n in COUNTS], tau=tau).draw(labels, generator(seed)) for k in (1, factor))
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1], there[1])


def test_alpha_one_and_tau_zero_are_not_quite_mixup():
    labels = torch.arange(64) % 4
    partner, lam = UniMix(COUNTS, 1.0, 0.0).draw(labels, generator(0))
    assert len(partner.unique()) < 64  # drawn with replacement, where mixup permutes
    assert len(lam.unique()) == 64  # where mixup has one share for the batch


def test_a_power_of_a_half_does_much_and_that_of_a_tenth_little():
    counts = N[labels_of(10_000)]
    rarest = counts == 50
    natural, little, half = (float(partner_probabilities(counts, tau)[rarest].sum()) for tau in (0.0, -0.1, -0.5))
    assert natural < little < 1.25 * natural
    assert half > 1.8 * natural


def test_draws_come_from_the_given_generator_only():
    batch, part = Batch.of(images(), torch.tensor([0, 1, 2, 3, 0, 0])), UniMix(COUNTS)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = part(batch, generator(3)), part(batch, generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.target.weights, second.target.weights)
    assert not torch.equal(first.x, part(batch, generator(4)).x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_images_keep_their_layout_and_type_and_the_callers_batch_is_untouched(layout, dtype):
    x = images().to(dtype).contiguous(memory_format=layout)
    batch, before = Batch.of(x, torch.tensor([0, 1, 2, 3, 0, 0])), x.clone()
    part = UniMix(COUNTS)
    mixed = part(batch, generator(0))
    assert torch.equal(x, before)
    assert batch.target.is_hard
    assert mixed.x.dtype == dtype
    assert mixed.x.is_contiguous(memory_format=layout)
    assert torch.equal(mixed.index, batch.index)
    partner, lam = part.draw(batch.target.single(), generator(0))
    wide = lam.float()[:, None, None, None]
    expected = wide * before.float() + (1 - wide) * before.float()[partner]
    assert_close(mixed.x.float(), expected, atol=1e-3 if dtype == torch.float16 else 1e-6, rtol=0)


def test_one_sample_is_its_own_partner():
    batch = Batch.of(images(1), torch.tensor([2]))
    with pytest.warns(UserWarning, match="one sample has no partner.*raise the batch size"):
        mixed = UniMix(COUNTS)(batch, generator(0))
    assert torch.equal(mixed.x, batch.x)
    assert_close(mixed.target.dense(4), torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


def test_an_empty_batch_stays_as_it_is():
    mixed = UniMix(COUNTS)(Batch.of(images(0), torch.zeros(0).long()), generator(0))
    assert mixed.x.shape == (0, 3, 5, 4)
    assert len(mixed.target) == 0


def test_nothing_of_the_mixture_has_a_gradient_but_the_inputs():
    x = torch.rand(6, 2, requires_grad=True)
    part, labels = UniMix(COUNTS), torch.tensor([0, 1, 2, 3, 0, 0])
    mixed = part(Batch.of(x, labels), generator(0))
    assert not mixed.target.weights.requires_grad
    mixed.x[:, 0].sum().backward()
    partner, lam = part.draw(labels, generator(0))
    assert x.grad is not None
    assert_close(x.grad[:, 0].double(), lam + torch.zeros(6).double().index_add(0, partner, 1 - lam))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be > 0"):
        UniMix(COUNTS, alpha)


@pytest.mark.parametrize("tau", [0.5, math.nan, -math.inf])
def test_bad_tau(tau):
    with pytest.raises(ValueError, match="tau must be <= 0 and finite.*frequent classes"):
        UniMix(COUNTS, tau=tau)


@pytest.mark.parametrize("bad", [0, -3])
def test_a_class_without_samples_is_named(bad):
    with pytest.raises(ValueError, match="class 1 has"):
        UniMix([5, bad, 3])


def test_bad_batches():
    part = UniMix(COUNTS)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\] for 4 classes, got 4"):
        part(Batch.of(images(2), torch.tensor([0, 4])), generator(0))
    with pytest.raises(ValueError, match="blends numbers"):
        part(Batch.of(torch.ones(2, 3).byte(), torch.tensor([0, 1])), generator(0))
    with pytest.raises(ValueError, match="one label per sample"):
        part(Batch.of(images(2), torch.full((2, 4), 0.25)), generator(0))
    with pytest.raises(TypeError, match="takes a Batch and a torch.Generator"):
        part(images(2), generator(0))  # pyright: ignore[reportArgumentType]


def test_chains_that_have_no_single_label_are_refused():
    facts, part = {"hard_target", "class_counts"}, UniMix(COUNTS)
    check(facts, [("transform", part), ("transform", MixUp())], Procedure())
    for chain in ([MixUp(), part], [part, UniMix(COUNTS)]):
        with pytest.raises(Incompatible, match="UniMix needs 'hard_target'"):
            check(facts, [("transform", each) for each in chain], Procedure())
    with pytest.raises(Incompatible, match="JoCoR needs 'hard_target'.*UniMix runs earlier"):
        check(facts, [("transform", part)], JoCoR())
    with pytest.raises(Incompatible, match="UniMix needs 'class_counts'"):
        check({"hard_target"}, [("transform", part)], Procedure())


def test_a_run_learns_from_mixtures():
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 96, True, generator=generator(0, "classes"))
    x = torch.randn(96, 8, generator=generator(0, "run")) + 3 * F.one_hot(labels, 8)
    data = Dataset.of(x, labels)
    run = Run(
        lambda seed: build_model("mlp:width=16", data, seed=seed),
        data,
        transforms=[UniMix(data.class_counts)],
        loss=Bayias(data.class_counts),
        settings=Settings(epochs=40, batch_size=32, lr=0.05),
    )
    fit(run)
    assert (run.predict(data).argmax(1) == labels).double().mean() > 0.9
