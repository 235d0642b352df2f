"""The rule: by hand, its limit cases, what it must be blind to, and the envelope of variation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from weathered.core.rng import generator
from weathered.selection.ood_expansion_selection import ExpansionSelection, expansion_envelope, select

SHARES = st.floats(0, 1).map(lambda x: round(x, 3))
POOLS = st.lists(st.tuples(SHARES, SHARES), min_size=3, max_size=12)


def margin(criterion):
    """By how much the best criterion leads."""
    first, second = sorted(criterion)[-1:-3:-1]
    return first - second


def test_by_hand():
    """The window holds three of four; their deviations set r0, and the fourth is chosen all the same."""
    found = select([0.9, 0.86, 0.82, 0.75], [0.5, 0.4, 0.3, 0.05])
    assert found.near.tolist() == [True, True, True, False]
    assert found.r0 == pytest.approx(0.04 / 0.1)
    assert found.criterion == pytest.approx([0.7, 0.7, 0.7, 0.73])
    assert (found.chosen, found.most_accurate) == (3, 0)


def test_a_model_at_the_edge_of_the_window_does_not_set_r0():
    assert select([1.0, 0.75, 0.5], [0.5, 0.25, 0.0], window=0.5).near.tolist() == [True, True, False]


@given(POOLS)
def test_without_a_penalty_or_where_all_vary_alike_accuracy_chooses(pool):
    accuracy, v = map(list, zip(*pool, strict=True))
    assert select(accuracy, v, r0=0).chosen == int(np.argmax(accuracy))
    alike = select(accuracy, [v[0]] * len(v))
    assert (alike.r0, alike.chosen) == (0, int(np.argmax(accuracy)))
    one_domain = select(accuracy, [0.0] * len(v))
    assert one_domain.chosen == one_domain.most_accurate


@given(POOLS, st.floats(-1, 1), st.floats(0, 1), st.sampled_from([0.25, 0.5, 2.0, 8.0, 0.3, 7.0]))
def test_constants_and_the_scale_of_variation_change_nothing(pool, lift, shift, factor):
    accuracy, v = (np.array(values) for values in zip(*pool, strict=True))
    found = select(accuracy, v)
    # the window has an edge, and variations that differ by rounding alone count as equal
    assume(np.abs(accuracy - accuracy.max() + 0.1).min() > 1e-9)
    assume(np.ptp(v[found.near]) == 0 or np.ptp(v[found.near]) > 1e-6)
    assume(margin(found.criterion) > 1e-9)
    for same in (select(accuracy + lift, v), select(accuracy, v + shift), select(accuracy, factor * v)):
        assert same.chosen == found.chosen
        assert same.near.tolist() == found.near.tolist()
    scaled = select(accuracy, factor * v)
    assert scaled.criterion == pytest.approx(found.criterion, abs=1e-9)
    if math.log2(factor).is_integer():
        assert scaled.criterion.tolist() == found.criterion.tolist()


def test_of_two_models_near_the_best_the_more_accurate_is_chosen_and_not_what_rounding_says():
    rng = generator(0, "pairs")
    for _ in range(50):
        high, low = (0.9 + 0.09 * torch.rand(2, generator=rng, dtype=torch.float64)).sort(descending=True)[0].tolist()
        less, more = torch.rand(2, generator=rng, dtype=torch.float64).sort()[0].tolist()
        found = select([low, high], [less, more])
        assert found.criterion[0] == pytest.approx(found.criterion[1], abs=1e-12)
        assert found.chosen == 1


def test_models_without_an_informative_feature_are_not_chosen():
    found = select([0.99, 0.9, 0.88], [math.nan, 0.4, 0.2])
    assert found.most_accurate == 0
    assert found.chosen in (1, 2)
    assert found.near.tolist() == [False, True, True]
    assert math.isnan(found.criterion[0])
    # the window is below the best of those that can be chosen
    assert select([0.99, 0.85, 0.8], [math.nan, 0.4, 0.2]).near.tolist() == [False, True, True]
    with pytest.raises(ValueError, match="no model has an informative feature, so none can be chosen"):
        select([0.9, 0.8], [math.nan, math.nan])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accuracy": []}, r"accuracy and variation must be \(M,\) with M >= 1"),
        ({"accuracy": [0.9]}, r"accuracy and variation must be \(M,\) with M >= 1, got \(1,\) and \(2,\)"),
        ({"accuracy": [0.9, math.nan]}, "accuracy must be finite"),
        ({"variation": [0.1, math.inf]}, "variation finite or NaN"),
        ({"window": 0.0}, "window must be > 0 and finite, got 0"),
        ({"window": math.nan}, "window must be > 0 and finite"),
        ({"r0": -0.1}, "r0 must be 'auto', or >= 0 and finite, got -0.1"),
        ({"r0": "best"}, "r0 must be 'auto', or >= 0 and finite, got 'best'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        select(**{"accuracy": [0.9, 0.8], "variation": [0.1, 0.2], **arguments})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("delta", 1.1, r"delta must be in \[0, 1\], got 1.1"),
        ("delta", math.nan, r"delta must be in \[0, 1\]"),
        ("window", -1, "window must be > 0"),
        ("r0", -1, "r0 must be 'auto'"),
        ("scaling", "both", "scaling must be 'feature' or 'global'"),
        ("min_count", 1, "min_count must be at least 2"),
        ("grid", 1 << 17, r"grid must be in \[16, 65536\]"),
    ],
)
def test_options_out_of_range_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        ExpansionSelection(**{option: value})


def stable_and_spurious(weight, dead=0, seed=0):
    """Features of a model that sees a spurious feature with this weight, and units that never fire."""
    labels, domains = torch.arange(1200) % 2, torch.arange(1200) // 2 % 3
    noise = torch.randn(1200, 2, generator=generator(seed, "noise"))
    sign, strength = 2.0 * labels - 1, torch.tensor([2.0, 1.2, 0.6])[domains]
    features = torch.stack([sign, weight * strength * sign + (1 - weight) * sign], 1) + noise
    return torch.cat([features, torch.zeros(1200, dead)], 1), labels, domains


def test_units_that_never_fire_do_not_make_a_model_look_stable():
    plain, dying = (ExpansionSelection().measure(*stable_and_spurious(1.0, dead)) for dead in (0, 50))
    assert dying.mean_variation == pytest.approx(plain.mean_variation)
    assert (plain.informative, dying.informative) == (2, 2)
    every = ExpansionSelection(delta=0).measure(*stable_and_spurious(1.0, 50))
    assert every.mean_variation < 0.1 * plain.mean_variation


def test_a_model_that_relies_less_on_what_moves_is_chosen_among_equals():
    selection = ExpansionSelection()
    measured = [selection.measure(*stable_and_spurious(weight)) for weight in (1.0, 0.5, 0.0)]
    varies = [found.mean_variation for found in measured]
    assert varies == sorted(varies, reverse=True)
    found = selection.choose([0.92, 0.91, 0.91], measured)
    assert (found.chosen, found.most_accurate) == (2, 0)
    assert ExpansionSelection(r0=0).choose([0.92, 0.91, 0.91], measured).chosen == 0


def test_a_model_without_an_informative_feature_has_no_variation():
    features, labels, domains = stable_and_spurious(1.0)
    found = ExpansionSelection(delta=1).measure(features, labels, domains)
    assert found.informative == 0
    assert math.isnan(found.mean_variation)


@given(POOLS, st.lists(st.floats(0, 2), min_size=2, max_size=20))
def test_the_envelope_is_the_smallest_expansion_above_all_points(points, at):
    train, test = (np.array(values) for values in zip(*points, strict=True))
    s = expansion_envelope(train, test)
    assert (s(train) >= test).all()
    x = np.sort(at)
    assert (s(x) >= x).all()
    assert (np.diff(s(x)) >= 0).all()
    # each value is forced: by s(x) >= x, or by a point to the left under which s may not fall
    forced = [max([value, *test[train <= value]]) for value in x]
    assert s(x).tolist() == forced
    assert float(s(0)) == max([0.0, *test[train == 0]])


def test_the_envelope_refuses_what_is_no_variation():
    with pytest.raises(ValueError, match=r"v_train and v_test must be \(M,\) with M >= 1"):
        expansion_envelope([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"v_test must be in \[0, 1\]"):
        expansion_envelope([0.1], [1.2])
    with pytest.raises(ValueError, match=r"v_train must be in \[0, 1\]"):
        expansion_envelope([math.nan], [0.2])
