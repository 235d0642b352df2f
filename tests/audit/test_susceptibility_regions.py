"""Running means and regions of susceptibility: exact, whatever the order, and undecided where nothing decides."""

import math
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.audit.susceptibility import regions, running_mean

drops = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


@given(drops)
def test_the_running_mean_is_the_mean_of_what_came_so_far(values):
    means = running_mean(values)
    assert means[0] == values[0]
    assert_close(means, [sum(values[: t + 1]) / (t + 1) for t in range(len(values))])
    assert_close(running_mean([values[0]] * 7), [values[0]] * 7)
    padded = running_mean([*values, 0.0, 0.0])
    assert_close(padded[-1] * (len(values) + 2), means[-1] * len(values), atol=1e-9, rtol=1e-9)


@given(drops)
def test_the_official_mean_leaves_the_first_drop_out_of_the_sum_only(values):
    means = running_mean(values, official_mean=True)
    assert means[0] == 0
    assert_close(means, [sum(values[1 : t + 1]) / (t + 1) for t in range(len(values))])


@pytest.mark.parametrize("official", [False, True])
def test_what_is_not_finite_stays_out_of_the_mean(official):
    nan = math.nan
    found = running_mean([nan, 1.0, math.inf, 2.0, nan], official)
    finite = running_mean([1.0, 2.0], official)
    assert math.isnan(found[0])
    assert found[1:] == [finite[0], finite[0], finite[1], finite[1]]
    assert all(map(math.isnan, running_mean([nan, nan], official)))
    assert running_mean([], official) == []


def test_the_four_regions():
    accuracy, zeta = [0.9, 0.8, 0.3, 0.4], [0.1, 0.9, 0.2, 0.8]
    assert regions(accuracy, zeta) == [1, 2, 3, 4]


points = st.tuples(st.floats(0, 1), st.floats(-1, 1)) | st.sampled_from([(0.5, 0.1), (0.1, 0.5), (0.3, 0.3)])


@given(st.lists(points, min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_the_order_of_networks_changes_nothing(pairs, random):
    order = list(range(len(pairs)))
    random.shuffle(order)
    found = regions(*map(list, zip(*pairs, strict=True)))
    shuffled = regions(*map(list, zip(*(pairs[i] for i in order), strict=True)))
    assert shuffled == [found[i] for i in order]


def test_a_tie_with_the_mean_counts_against_the_network():
    accuracy = [0.5, 1.0, 0.0, 0.5]
    assert regions(accuracy, [0.0, 0.5, 1.0, 0.5]) == [3, 2, 4, 4]
    # 0.1 + 0.2 + 0.3 depends on the order of its sum, and so would the region of the one in the middle
    assert regions([0.1, 0.2, 0.3], [0.0, 1.0, 0.0])[1] == regions([0.3, 0.2, 0.1], [0.0, 1.0, 0.0])[1]


@pytest.mark.parametrize(("accuracy", "zeta"), [([0.9], [0.1]), ([0.9, 0.9], [0.1, 0.2]), ([0.9, 0.8], [0.1, 0.1])])
def test_one_network_or_no_spread_is_undecided(accuracy, zeta):
    assert regions(accuracy, zeta) == ["undecided"] * len(accuracy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert regions([0.1] * 3, [0.7] * 3) == ["undecided"] * 3


def test_regions_refuse_what_they_cannot_place():
    for match, accuracy, zeta in (
        ("got shapes (2,) and (1,)", [0.1, 0.2], [0.1]),
        ("got shapes (0,) and (0,)", [], []),
        ("zeta must be finite, got nan at position 1; leave that network out", [0.1, 0.2], [0.1, math.nan]),
        ("train_accuracy must be finite, got inf at position 0", [math.inf, 0.2], [0.1, 0.2]),
    ):
        with pytest.raises(ValueError, match=re.escape(match)):
            regions(accuracy, zeta)
