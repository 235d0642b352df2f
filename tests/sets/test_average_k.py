"""Average-K: every line of what must hold, on exact posteriors, on scores full of ties and on trained models."""

import inspect
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from weathered.core.rng import generator
from weathered.sets.average_k import AverageK
from weathered.sets.base import SAMPLE, _drawn, mth_largest
from weathered.sets.report import measure_sets
from weathered.sets.top_k import TopK

any_scores = pytest.mark.filterwarnings("ignore:row .* sums to")
"""For scores that can be compared without being probabilities."""

GRID = st.tuples(st.integers(1, 9), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 8).map(lambda i: i / 8))
)
"""Scores of few values, so that many are equal."""


def posteriors(n=20_000, seed=0):
    """The population of the check: half of the inputs clear, half ambiguous, 20 classes."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.dirichlet(np.full(20, 0.02), n // 2), rng.dirichlet(np.ones(20), n // 2)])


def softmax(logits, temperature=1.0):
    return torch.as_tensor(logits / temperature).softmax(1).numpy()


def mean_size(mask):
    return mask.sum(1).mean()


@pytest.fixture(scope="module")
def population():
    return posteriors()


KINDS = {
    "distinct": lambda rng: rng.permutation(200_000) / 200_000,
    "one value": lambda rng: np.full(200_000, 0.1),
    "two values": lambda rng: (rng.random(200_000) < 0.4).astype(float),
    "saturated": lambda rng: np.where(rng.random(200_000) < 0.9, 0.0, rng.random(200_000)),
    "logarithms": lambda rng: np.where(rng.random(200_000) < 0.5, -np.inf, rng.normal(size=200_000)),
    "negative": lambda rng: rng.normal(size=200_000),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_selection_is_the_entry_of_a_full_sort(kind):
    scores = KINDS[kind](np.random.default_rng(0)).reshape(-1, 40)
    assert scores.size > SAMPLE
    ordered = np.sort(scores, axis=None)[::-1]
    for m in (1, 2, 100, 5_000, 20_000, 79_999, 100_000, 180_001, 199_999, 200_000):
        expected = ordered[m - 1]
        assert mth_largest(scores, m) == (expected, (scores > expected).sum(), (scores == expected).sum())


@given(GRID, st.data())
def test_the_selection_of_few_entries_too(scores, data):
    m = data.draw(st.integers(1, scores.size))
    expected = np.sort(scores, axis=None)[-m]
    assert mth_largest(scores, m) == (expected, (scores > expected).sum(), (scores == expected).sum())


def test_the_selection_survives_draws_that_show_nothing_of_the_rest():
    shape = (10_000, 40)
    places = _drawn(np.arange(400_000.0).reshape(shape)).astype(int)
    scores = np.random.default_rng(0).random(400_000)
    scores[places] += 1
    ordered = np.sort(scores)
    for m in (1, 1000, 200_000, 400_000):
        assert mth_largest(scores.reshape(shape), m).value == ordered[-m]


def test_the_selection_asks_for_an_entry_that_is_there():
    for m in (0, 7):
        with pytest.raises(ValueError, match=r"m must be in \[1, 6\]"):
            mth_largest(np.zeros((2, 3)), m)
    with pytest.raises(ValueError, match="NaN"):
        mth_largest(np.full((2, 3), np.nan), 2)


@any_scores  # bfloat16 rounds sums by more than a thousandth
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_arrays_and_files_of_the_same_scores_give_the_same_sets(dtype, tmp_path):
    tensor = torch.from_numpy(posteriors(4000)).to(dtype)
    array = tensor.double().numpy()
    np.save(tmp_path / "scores.npy", array)
    expected = AverageK(2.3).fit(array)
    for scores in (tensor.requires_grad_(), tmp_path / "scores.npy"):
        found = AverageK(2.3).fit(scores)
        assert found.state_dict() == expected.state_dict()
        assert np.array_equal(found.predict(scores), expected.predict(array))


def test_scores_of_another_precision_are_compared_exactly():
    """0.1 in float32 is larger than in float64; compared in float32 they would be equal."""
    rule = AverageK(1, ties="exclude").fit(np.array([[0.9, 0.1], [0.9, 0.1]]))
    assert rule.threshold_ == 0.9
    rule.threshold_ = 0.1
    assert rule.predict(np.array([[0.9, 0.1]], np.float32)).tolist() == [[True, True]]
    assert rule.predict(np.array([[0.9, 0.1]])).tolist() == [[True, False]]


@any_scores
@given(GRID, st.data())
def test_the_expected_size_on_the_fitted_scores_is_k(scores, data):
    n, num_classes = scores.shape
    whole = data.draw(st.integers(0, scores.size))
    assert AverageK(whole / n).fit(scores).expected_size_ == pytest.approx(whole / n, abs=1e-12)
    k = data.draw(st.floats(0, num_classes))
    rule = AverageK(k).fit(scores)
    assert abs(rule.expected_size_ - k) <= 0.5 / n + 1e-12
    equal = (scores == rule.threshold_).sum() / n
    if np.isfinite(rule.threshold_):
        assert rule.expected_size_ == pytest.approx((scores > rule.threshold_).sum() / n + rule.q_ * equal)
        assert 0 <= rule.q_ <= 1


@pytest.mark.parametrize("k", [0.001, 0.7, 1, 2.5, 7.1234, 19.9])
def test_without_ties_the_size_on_the_fitted_scores_is_within_one_label_of_k(k):
    scores = np.random.default_rng(0).dirichlet(np.ones(20), 333)
    for seed in range(5):
        mask = AverageK(k).fit(scores).predict(scores, generator(seed, "size"))
        assert abs(mean_size(mask) - k) <= 1 / 333 + 1e-12


def test_equal_scores_enter_with_the_probability_that_makes_the_size_k():
    """Rows (0.4, 0.2, 0.2, 0.2): one label above, and K - 1 = 1.5 of three equal ones."""
    scores = np.tile([0.4, 0.2, 0.2, 0.2], (20_000, 1))
    rule = AverageK(2.5).fit(scores)
    assert (rule.threshold_, rule.q_) == (0.2, 0.5)
    mask = rule.predict(scores, generator(0, "ties"))
    assert mask.mean(0) == pytest.approx([1, 0.5, 0.5, 0.5], abs=0.015)
    assert np.cov(mask[:, 1:].T) == pytest.approx(np.eye(3) / 4, abs=0.01)  # each by itself
    assert mean_size(AverageK(2.5, ties="include").fit(scores).predict(scores)) == 4
    assert mean_size(AverageK(2.5, ties="exclude").fit(scores).predict(scores)) == 1
    assert AverageK(2.5, ties="include").fit(scores).expected_size_ == 4
    assert AverageK(2.5, ties="exclude").fit(scores).expected_size_ == 1


def test_draws_repeat_by_the_generator_alone():
    scores = np.full((50, 4), 0.25)
    rule = AverageK(2).fit(scores)
    before = torch.get_rng_state()
    assert np.array_equal(rule.predict(scores), rule.predict(scores))
    assert np.array_equal(rule.predict(scores, generator(1, "a")), rule.predict(scores, generator(1, "a")))
    assert not np.array_equal(rule.predict(scores, generator(1, "a")), rule.predict(scores, generator(2, "a")))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_set_of_an_input_does_not_depend_on_the_others(population):
    rule = AverageK(2).fit(population)
    together = rule.predict(population[9000:11_000])
    apart = np.concatenate([rule.predict(row[None]) for row in population[9000:11_000:10]])
    assert np.array_equal(together[::10], apart)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 100))
def test_permutations_of_one_vector_give_top_k(n, num_classes, seed):
    rng = np.random.default_rng(seed)
    vector = np.arange(1, num_classes + 1) / np.arange(1, num_classes + 1).sum()
    scores = np.stack([rng.permutation(vector) for _ in range(n)])
    for k in range(num_classes + 1):
        assert np.array_equal(AverageK(k).fit(scores).predict(scores), TopK(k).predict(scores))


@given(arrays(np.float64, st.integers(1, 40), elements=st.integers(0, 499).map(lambda i: (i + 0.5) / 1000)))
def test_two_complementary_classes_and_k_of_one_give_top_one(p):
    scores = np.stack([p, 1 - p], 1)
    assert np.array_equal(AverageK(1).fit(scores).predict(scores), TopK(1).predict(scores))


@any_scores
@pytest.mark.parametrize("ties", ["random", "include", "exclude"])
def test_k_of_all_classes_gives_all_labels_and_k_of_zero_none(ties):
    scores, new = posteriors(1000), np.concatenate([posteriors(1000, seed=1), np.full((1, 20), -np.inf)])
    assert AverageK(20, ties).fit(scores).predict(new).all()
    assert not AverageK(0, ties).fit(scores).predict(new).any()
    labels = np.zeros(1001, int)
    assert measure_sets(AverageK(20, ties).fit(scores).predict(new), labels).error.value == 0
    assert measure_sets(AverageK(0, ties).fit(scores).predict(new), labels).error.value == 1


@any_scores
@given(GRID, st.data(), st.integers(0, 9))
def test_sets_are_nested_in_k(scores, data, seed):
    num_classes = scores.shape[1]
    smaller, larger = sorted(data.draw(st.tuples(*[st.floats(0, num_classes)] * 2)))
    for ties in ("random", "include", "exclude"):
        inner, outer = (
            AverageK(k, ties).fit(scores).predict(scores, generator(seed, "nested")) for k in (smaller, larger)
        )
        assert (inner <= outer).all()


@any_scores
@given(GRID, st.data())
def test_sets_follow_classes_and_ignore_the_order_of_rows_and_any_rising_function(scores, data):
    n, num_classes = scores.shape
    k = data.draw(st.floats(0, num_classes))
    rows = data.draw(st.permutations(range(n)))
    classes = data.draw(st.permutations(range(num_classes)))
    for ties in ("random", "include", "exclude"):
        rule = AverageK(k, ties).fit(scores)
        assert AverageK(k, ties).fit(scores[rows]).state_dict() == rule.state_dict()
        assert AverageK(k, ties).fit(scores[:, classes]).state_dict() == rule.state_dict()
        for rising in (np.exp, np.cbrt, lambda s: 3 * s - 7):
            moved = AverageK(k, ties).fit(rising(scores))
            assert (moved.q_, moved.expected_size_) == (rule.q_, rule.expected_size_)
            assert np.array_equal(moved.predict(rising(scores)), rule.predict(scores))
    kept = AverageK(k, "include").fit(scores)
    assert np.array_equal(kept.predict(scores[:, classes]), kept.predict(scores)[:, classes])


def test_fit_sees_no_label():
    assert list(inspect.signature(AverageK.fit).parameters) == ["self", "probabilities"]


@pytest.mark.parametrize(("k", "correlation"), [(1, -0.53), (3, 0.83), (5, 0.94)])
def test_ambiguous_inputs_get_larger_sets_unless_k_is_small(population, k, correlation):
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(population * np.log(population), axis=1)
    sizes = AverageK(k).fit(population).predict(population).sum(1)
    assert spearmanr(entropy, sizes).statistic == pytest.approx(correlation, abs=0.03)


def test_there_is_one_threshold_and_not_one_per_class_or_row():
    scores = np.array([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
    mask = AverageK(1).fit(scores).predict(scores)
    assert mask.tolist() == [[True, False, False], [True, False, False], [True, False, False]]
    scores[2] = [0.05, 0.5, 0.45]
    mask = AverageK(4 / 3).fit(scores).predict(scores)
    assert mask.sum(1).tolist() == [1, 1, 2]  # per row 1 each
    assert mask.sum(0).tolist() == [2, 1, 1]  # per class 4 / 3 each


def test_k_of_one_leaves_sets_empty_and_forcing_a_label_makes_them_larger_than_k(population):
    mask = AverageK(1).fit(population).predict(population)
    labels = np.zeros(len(population), int)
    assert measure_sets(mask, labels).empty.value == pytest.approx(0.25, abs=0.01)
    forced = mask | TopK(1).predict(population)
    assert measure_sets(forced, labels).size.value == pytest.approx(1.25, abs=0.01)


def test_temperature_changes_average_k_and_not_top_k():
    logits = np.random.default_rng(0).normal(size=(2000, 10)) * np.random.default_rng(1).uniform(0.2, 6, (2000, 1))
    plain, flat = softmax(logits), softmax(logits, temperature=4)
    assert np.array_equal(TopK(2).predict(plain), TopK(2).predict(flat))
    sets = [AverageK(2).fit(scores).predict(scores) for scores in (plain, flat)]
    assert (sets[0] != sets[1]).any(1).mean() > 0.1


def test_scores_of_training_inputs_miss_the_size_and_held_out_ones_keep_it():
    images, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    x = images / 16 + rng.normal(size=images.shape) * 0.6
    order = rng.permutation(len(x))
    train, held, test = order[:300], order[300:1050], order[1050:]
    model = LogisticRegression(C=10, max_iter=300).fit(x[train], digits[train])
    scores = {name: model.predict_proba(x[rows]) for name, rows in (("train", train), ("held", held), ("test", test))}
    for k, low, high in ((1, 0.5, 0.8), (2, 2.3, 2.7)):  # too small where few labels fit, else too large
        sizes = {name: mean_size(AverageK(k).fit(scores[name]).predict(scores["test"])) for name in ("train", "held")}
        assert abs(sizes["held"] - k) < 0.1
        assert low < sizes["train"] < high


def test_the_size_holds_for_inputs_of_the_same_kind_and_drifts_under_shift(population):
    rule = AverageK(3).fit(population)
    same, shifted = posteriors(seed=1), np.random.default_rng(2).dirichlet(np.ones(20), 5000)
    sizes = [measure_sets(rule.predict(new), np.zeros(len(new), int)).size for new in (same, shifted)]
    assert abs(sizes[0].value - 3) < 0.05  # three standard errors of both samples
    assert sizes[1].low > 4


def test_float32_saturates_into_ties_that_float64_tells_apart():
    """Gaps of 17 to 36 nats: the odds of the other class are below the step of float32 at 1, above that of float64."""
    gaps = np.linspace(17.5, 35, 1000)
    logits = np.stack([gaps, np.zeros(1000)], 1)
    single = torch.from_numpy(logits).float().softmax(1)
    assert mth_largest(single, 500).equal == 1000
    assert mth_largest(softmax(logits), 500).equal < 10
    sizes = [mean_size(AverageK(0.5).fit(single).predict(single, generator(seed, "saturated"))) for seed in range(20)]
    assert np.mean(sizes) == pytest.approx(0.5, abs=0.015)  # the size is kept by the draws
    double = AverageK(0.5).fit(softmax(logits)).predict(softmax(logits))
    assert double[500:, 0].mean() > 0.98  # the clearest inputs keep their label
    assert abs(mean_size(double) - 0.5) <= 1 / 1000


def test_fitting_needs_little_memory():
    scores = np.random.default_rng(0).random((20_000, 200), dtype=np.float32)
    scores /= scores.sum(1, keepdims=True)
    tracemalloc.start()
    try:
        AverageK(5).fit(scores)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * scores.nbytes  # a sort in float64 needs twice the scores
    tracemalloc.start()
    try:
        mth_largest(scores, 100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.3 * scores.nbytes


def test_arguments_stay_as_they_were():
    scores = posteriors(200)
    before = scores.copy()
    AverageK(2.5).fit(scores).predict(scores)
    TopK(2.5).fit(scores).predict(scores)
    assert np.array_equal(scores, before)


def test_state_goes_round():
    scores = posteriors(500)
    rule = AverageK(2).fit(scores)
    other = AverageK(2)
    assert other.state_dict() == {}
    other.load_state_dict(rule.state_dict())
    assert np.array_equal(other.predict(scores), rule.predict(scores))
    other.load_state_dict({})
    with pytest.raises(ValueError, match="call fit"):
        other.predict(scores)
    with pytest.raises(ValueError, match="AverageK learns"):
        other.load_state_dict({"threshold_": 0.1})


def test_rows_that_do_not_sum_to_one_warn_and_probabilities_do_not(recwarn):
    rows = np.array([[0.5, 0.5], [0.7, 0.3009]])
    rule = AverageK(1).fit(rows)
    rule.predict(rows)
    assert not recwarn.list
    rows[1, 0] = 0.702
    with pytest.warns(UserWarning, match="row 1 sums to 1.0029 instead of 1; if these are logits") as caught:
        AverageK(1).fit(rows)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="row 0 sums to"):
        rule.predict(np.array([[3.0, -8.0]]))


@any_scores
def test_what_cannot_be_used_is_refused():
    good = np.full((3, 4), 0.25)
    bad = good.copy()
    bad[2, 1] = np.nan
    for k in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="k must be a finite number >= 0"):
            AverageK(k)
    with pytest.raises(ValueError, match="ties must be"):
        AverageK(1, ties="all")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"k must be in \[0, 4\] for 4 classes, got 4.5"):
        AverageK(4.5).fit(good)
    with pytest.raises(ValueError, match="row 2 holds NaN"):
        AverageK(1).fit(bad)
    with pytest.raises(ValueError, match="row 2 holds NaN"):
        AverageK(1).fit(good).predict(bad)
    with pytest.raises(ValueError, match="at least one row"):
        AverageK(1).fit(good[:0])
    with pytest.raises(ValueError, match="floating point"):
        AverageK(1).fit(np.ones((3, 4), int))
    with pytest.raises(ValueError, match="matrix"):
        AverageK(1).fit(good[0])
    with pytest.raises(ValueError, match="fitted to 4 classes, but the scores have 3 columns"):
        AverageK(1).fit(good).predict(good[:, :3])
    with pytest.raises(ValueError, match="call fit"):
        AverageK(1).predict(good)
    infinite = good.copy()
    infinite[0, :2] = np.inf, -np.inf
    assert AverageK(1 / 3).fit(infinite).predict(infinite)[0, 0]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.5, 5))
def test_no_rule_of_the_same_size_has_fewer_errors(seed, k):
    """Exchanging what is in for what is out, at the same mean size, never lowers the error on known posteriors."""
    scores = posteriors(400, seed)
    mask = AverageK(round(k * 400) / 400).fit(scores).predict(scores)
    rng = np.random.default_rng(seed)
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
    count = min(len(inside), 50)
    flat = scores.reshape(-1)
    assert flat[rng.choice(inside, count, False)].sum() >= flat[rng.choice(outside, count, False)].sum()
