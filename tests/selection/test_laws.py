"""Laws of features: total variation against closed forms and direct sums, and what variation must be blind to."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.selection.laws import (
    cells_of,
    equal_cells,
    informativeness_of,
    laws_in_blocks,
    total_variation,
    variation_of,
)
from weathered.selection.ood_expansion_selection import ExpansionSelection, informativeness, variation

DOMAINS, CLASSES, EACH = 3, 3, 80


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "normal"), dtype=torch.float64)


def table(seed=0, features=5):
    """Noise that moves with class and domain, at offsets of its own for each feature: (features, labels, domains)."""
    cell = torch.arange(DOMAINS * CLASSES * EACH) % (DOMAINS * CLASSES)
    labels, domains = cell % CLASSES, cell // CLASSES
    drift = normal(DOMAINS * CLASSES, features, seed=seed + 100)
    return normal(len(cell), features, seed=seed) + drift[cell], labels, domains


def between(first, second):
    """Estimated total variation of two samples (n, D): their class's variation between two domains."""
    domains = torch.arange(2).repeat_interleave(torch.tensor([len(first), len(second)]))
    return variation(torch.cat([first, second]), torch.zeros(len(domains)).long(), domains, min_count=2)


def exactly(features, labels, domains, scaling="feature"):
    """Variation and informativeness, (2, D)."""
    return torch.stack([f(features, labels, domains, scaling) for f in (variation, informativeness)])


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_distance_of_two_gaussians_is_the_closed_form(distance):
    found = between(normal(1000, 40), normal(1000, 40, seed=1) + distance)
    truth = math.erf(distance / 2 / math.sqrt(2))
    assert abs(float(found.mean()) - truth) < 0.05
    # chance makes equal laws differ, smoothing brings others together
    assert (float(found.mean()) > truth) == (distance == 0)


def test_counts_and_one_convolution_are_the_sum_of_kernels():
    """Of cells of two sizes, too: each deviation is that of the samples that are there."""
    first, second = normal(60, 1), 1.5 * normal(40, 1, seed=1) + 0.7
    n, scale = 60, (first.std(0, correction=0) + second.std(0, correction=0)) / 2
    width = 1.06 * n**-0.2 * scale
    at = torch.linspace(-9, 9, 4001, dtype=torch.float64)

    def density(sample):
        return torch.exp(-(((at - sample) / width) ** 2) / 2).mean(0) / (width * math.sqrt(2 * math.pi))

    direct = (density(first) - density(second)).abs().sum() * (at[1] - at[0]) / 2
    assert_close(between(first, second)[0], direct, atol=2e-3, rtol=0)


@given(st.integers(0, 200), st.integers(2, 60), st.integers(2, 60), st.floats(0.01, 30), st.floats(-5, 5))
@hypothesis_settings(max_examples=40)
def test_distance_is_symmetric_in_its_range_and_0_for_equal_samples(seed, n, m, spread, shift):
    first, second = normal(n, 3, seed=seed), spread * normal(m, 3, seed=seed + 1) + shift
    found = between(first, second)
    assert_close(found, between(second, first), atol=1e-9, rtol=0)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert float(between(first, first.flip(0)).max()) < 1e-12


def test_disjoint_laws_are_1_apart():
    assert float(between(normal(100, 4), normal(100, 4, seed=1) + 30).min()) > 0.99


def test_domains_that_are_copies_do_not_vary():
    one, labels, _ = table()
    domains = torch.arange(3).repeat_interleave(len(one))
    assert float(variation(one.repeat(3, 1), labels.repeat(3), domains).max()) < 1e-12


def test_another_domain_raises_variation_and_lowers_informativeness():
    features, labels, domains = table()
    cells = cells_of(labels, domains, 50)
    ((_, laws),) = laws_in_blocks(features, cells)
    v = [variation_of(laws[:e], cells.present[:e]) for e in (1, 2, 3)]
    i = [informativeness_of(laws[:e], cells.present[:e]) for e in (1, 2, 3)]
    assert v[0].eq(0).all()
    assert bool((v[1] <= v[2]).all())
    assert bool((v[1] < v[2]).any())
    assert bool((i[0] >= i[1]).all())
    assert bool((i[1] >= i[2]).all())
    assert bool((i[0] > i[2]).any())
    assert_close(torch.stack([v[2], i[2]]), exactly(features, labels, domains))


@given(st.permutations(range(DOMAINS)), st.permutations(range(CLASSES)), st.integers(0, 99))
@hypothesis_settings(max_examples=15)
def test_order_of_samples_and_names_of_domains_and_classes_say_nothing(places, kinds, seed):
    features, labels, domains = table(seed)
    order = torch.randperm(len(labels), generator=generator(seed, "order"))
    renamed = torch.tensor(kinds)[labels] + 4, torch.tensor(places)[domains] * 7
    found = exactly(features[order], *(names[order] for names in renamed))
    assert_close(found, exactly(features, labels, domains), atol=1e-9, rtol=0)


@given(st.floats(1e-3, 1e3), st.booleans(), st.floats(-1e3, 1e3), st.integers(0, 4))
@hypothesis_settings(max_examples=25)
def test_scale_and_offset_of_a_feature_say_nothing_by_default(factor, mirrored, offset, column):
    features, labels, domains = table()
    moved = features.clone()
    moved[:, column] = (-factor if mirrored else factor) * features[:, column] + offset
    assert_close(exactly(moved, labels, domains), exactly(features, labels, domains), atol=1e-9, rtol=0)


def test_one_scale_for_all_features_hides_what_a_small_one_does():
    """The paper's scaling; of features of one scale both kinds say the same."""
    features, labels, domains = table()
    alone, together = (variation(features, labels, domains, scaling) for scaling in ("feature", "global"))
    assert_close(alone, together, atol=0.03, rtol=0)
    small = torch.cat([features[:, :1] / 1000, features[:, 1:]], 1)
    assert float(variation(small, labels, domains, "global")[0]) < 0.05 < float(alone[0])
    # all features together may be scaled and moved
    assert_close(variation(1000 * small - 5, labels, domains, "global"), variation(small, labels, domains, "global"))


def test_a_feature_is_measured_as_if_it_were_alone():
    features, labels, domains = table()
    wild = 1e6 * normal(len(labels), 2, seed=5) ** 3
    beside = variation(torch.cat([features, wild], 1), labels, domains)[: features.shape[1]]
    assert torch.equal(beside, variation(features, labels, domains))


def test_what_says_the_label_the_domain_or_nothing():
    _, labels, domains = table()
    noise = normal(len(labels), 1)
    features = torch.cat([labels[:, None] + 0.01 * noise, domains[:, None] + 0.01 * noise, noise], 1)
    v, i = exactly(features, labels, domains)
    floor = float(between(normal(EACH, 200, seed=3), normal(EACH, 200, seed=4)).max())
    assert (float(i[0]), float(v[1])) == pytest.approx((1, 1), abs=1e-3)
    assert float(torch.stack([v[0], i[1], v[2], i[2]]).max()) < floor < 0.35


def test_a_feature_that_is_the_label_without_noise_and_one_that_is_constant():
    _, labels, domains = table()
    features = torch.stack([3 * labels, torch.full_like(labels, 7)], 1).float()
    v, i = exactly(features, labels, domains)
    assert v.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert i.tolist() == pytest.approx([1, 0], abs=1e-6)


def test_rotated_features_have_another_variation():
    features, labels, domains = table(features=2)
    turn = math.sqrt(0.5) * torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    turned = variation(features @ turn, labels, domains)
    assert float((turned.mean() - variation(features, labels, domains).mean()).abs()) > 0.02


def test_one_domain_does_not_vary_and_that_is_said():
    features, labels, domains = table()
    with pytest.warns(UserWarning, match="one training domain, so the variation of every feature is 0"):
        assert variation(features, labels, torch.zeros_like(domains)).eq(0).all()


def test_a_class_that_a_domain_lacks_is_left_out_there_with_a_warning():
    features, labels, domains = table()
    rare = (labels == 2) & (domains == 1)
    kept = ~rare | (rare.cumsum(0) <= 3)
    with pytest.warns(UserWarning, match=r"left out for fewer than 50 samples: class 2 in domain 1 \(3 samples\)"):
        found = variation(features[kept], labels[kept], domains[kept])
    with pytest.warns(UserWarning, match=r"class 2 in domain 1 \(0 samples\)"):
        assert_close(found, variation(features[~rare], labels[~rare], domains[~rare]))
    cells = cells_of(labels[~rare], domains[~rare], 50)
    ((_, laws),) = laws_in_blocks(features[~rare], cells)
    assert laws[1, 2].eq(0).all()
    assert_close(found, variation_of(laws, cells.present))
    assert float((total_variation(laws[0, 2], laws[2, 2]) - found).max()) <= 1e-12


def test_fewer_samples_look_less_stable_until_all_cells_have_as_many():
    _, labels, domains = table()
    noise = normal(len(labels), 50)
    few = torch.arange(len(labels)) < len(labels) // 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = variation(noise[few], labels[few], domains[few], min_count=10).mean()
        large = variation(noise, labels, domains, min_count=10).mean()
    assert float(small - large) > 0.1


def test_equal_cells_draw_as_many_from_each_and_none_from_small_ones():
    rng = generator(0, "counts")
    labels, domains = torch.randint(3, (2000,), generator=rng), torch.randint(4, (2000,), generator=rng)
    keep = ~((labels == 1) & (domains == 2)) | (torch.arange(2000) < 200)
    labels, domains = labels[keep], domains[keep]
    counts = torch.bincount(3 * domains + labels)
    rows = equal_cells(labels, domains, 60, generator(0, "cells"))
    drawn = torch.bincount(3 * domains[rows] + labels[rows], minlength=12)
    assert int(counts[7]) < 60
    least = int(counts[counts >= 60].min())
    assert drawn.tolist() == [0 if cell == 7 else least for cell in range(12)]
    assert torch.equal(rows, rows.unique())
    assert torch.equal(rows, equal_cells(labels, domains, 60, generator(0, "cells")))
    assert not torch.equal(rows, equal_cells(labels, domains, 60, generator(1, "cells")))


def test_blocks_of_features_give_what_one_at_a_time_gives(monkeypatch):
    features, labels, domains = table(features=40)
    whole = exactly(features, labels, domains)
    monkeypatch.setattr("weathered.selection.laws.VALUES_AT_ONCE", 9 * 512 * 7)
    assert len(list(laws_in_blocks(features, cells_of(labels, domains, 50)))) > 5
    assert_close(exactly(features, labels, domains), whole, atol=1e-12, rtol=0)
    alone = torch.cat([exactly(features[:, [j]], labels, domains) for j in range(40)], 1)
    assert_close(whole, alone, atol=1e-12, rtol=0)
    found = ExpansionSelection().measure(features, labels, domains)
    assert_close(torch.stack([found.variation, found.informativeness]), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(720)}, r"features must be \(720, D\) with D >= 1, got \(720,\)"),
        ({"features": torch.zeros(720, 0)}, "with D >= 1"),
        ({"features": torch.full((720, 2), math.nan)}, "row 0 holds NaN"),
        ({"labels": torch.zeros(720)}, r"labels must be \(720,\) whole numbers"),
        ({"labels": torch.full((720,), -1)}, "labels must be 0 or above, got -1 at position 0"),
        ({"domains": torch.zeros(3).long()}, r"domains must be \(720,\) whole numbers"),
        ({"scaling": "none"}, "scaling must be 'feature' or 'global', got 'none'"),
        ({"grid": 15}, r"grid must be in \[16, 65536\], got 15"),
        ({"min_count": 1}, "min_count must be at least 2, got 1"),
        ({"min_count": 81}, "every class has fewer than min_count = 81 samples in every domain, 80 at most"),
        ({"domains": torch.arange(720) % 3}, "no class has enough samples in two domains"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    features, labels, domains = table()
    arguments = {"features": features, "labels": labels, "domains": domains, **change}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            variation(**arguments)


def test_informativeness_needs_two_classes_in_one_domain():
    features, _, domains = table()
    with pytest.raises(ValueError, match="two classes with enough samples in one domain"):
        informativeness(features, torch.zeros_like(domains), domains)
