"""Scores of label quality: closed forms, direction, inputs that are refused, and blocks that change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_data import noisy, softmax

from weathered.audit.labels.quality import label_quality
from weathered.audit.labels.scores import of_row, predicted_class, row_summary
from weathered.core.errors import DataError, SpecError

SCORES = ("self_confidence", "normalised_margin", "confidence_weighted_entropy")


def test_closed_forms():
    p, y = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]), np.array([0, 2, 1])
    assert label_quality(p, y, "self_confidence").tolist() == [0.7, 0.1, 1 / 3]
    assert label_quality(p, y, "normalised_margin") == pytest.approx([0.75, 0.2, 0.5])
    entropy = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)) / np.log(3)
    x = np.array([entropy / 0.7, entropy / 0.1, 3])
    assert label_quality(p, y, "confidence_weighted_entropy") == pytest.approx(np.log(1 + x) / x)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certain_predictions_score_one_for_the_label_and_zero_against_it(score, dtype):
    p = np.eye(3, dtype=dtype)[[0, 0]]
    assert label_quality(p, np.array([0, 1]), score).tolist() == [1.0, 0.0]
    almost = np.array([[1 - 1e-7, 1e-7]])
    assert label_quality(almost, np.array([0]), score)[0] == pytest.approx(1, abs=1e-5)


def test_entropy_score_goes_to_its_limit_without_a_jump():
    e = 10.0 ** -np.arange(1, 14)
    p = np.stack([1 - e, e], axis=1)
    sure = label_quality(p, np.zeros(13, int), "confidence_weighted_entropy")
    against = label_quality(p, np.ones(13, int), "confidence_weighted_entropy")
    assert (np.diff(sure) > 0).all()
    assert (np.diff(against) < 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 2**31))
def test_scores_lie_in_the_unit_interval_and_fall_as_the_label_loses_probability(num_classes, seed):
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(size=(20, num_classes)) * 4)
    order = np.argsort(p, axis=1)
    for score in SCORES:
        by_rank = np.stack([label_quality(p, order[:, r], score) for r in range(num_classes)])
        assert ((by_rank >= 0) & (by_rank <= 1)).all()
        assert (np.diff(by_rank, axis=0) >= 0).all()


def test_two_classes_make_the_margin_the_self_confidence():
    p, y, _ = noisy(50, 2)
    assert label_quality(p, y, "normalised_margin") == pytest.approx(label_quality(p, y, "self_confidence"), abs=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block_rows", [1, 7, 64, 599, 10_000])
def test_blocks_memory_maps_tensors_and_orders_give_the_same_bits(tmp_path, dtype, block_rows):
    p, y, _ = noisy()
    p = p.astype(dtype)
    np.save(tmp_path / "p.npy", p)
    inputs = (p, np.asfortranarray(p), torch.from_numpy(p), tmp_path / "p.npy", np.load(tmp_path / "p.npy", "r"))
    for score in SCORES:
        expected = label_quality(p, y, score)
        for form in inputs:
            assert np.array_equal(label_quality(form, y, score, block_rows=block_rows), expected)


def test_inputs_are_left_alone():
    p, y, _ = noisy()
    before = p.copy(), y.copy()
    label_quality(p, y, "confidence_weighted_entropy")
    assert np.array_equal(p, before[0])
    assert np.array_equal(y, before[1])


def test_predicted_class_is_the_argmax_and_the_label_where_it_is_level():
    p, y, _ = noisy()
    assert np.array_equal(predicted_class(row_summary(p, y), y), p.argmax(axis=1))
    level = np.full((3, 3), 1 / 3)
    assert predicted_class(row_summary(level, np.arange(3)), np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.502, 0.0], "row 4 sums to 1.002"),
        ([np.nan, 0.5, 0.5], "row 4 holds a value that is not finite"),
        ([np.inf, 0.5, 0.5], "row 4 holds a value that is not finite"),
        ([1.1, -0.1, 0.0], "row 4 holds the negative value -0.1"),
    ],
)
@pytest.mark.parametrize("block_rows", [None, 3])
def test_the_first_row_that_is_no_distribution_is_named(row, message, block_rows):
    p = np.full((6, 3), 1 / 3)
    p[4], p[5] = row, 9.0
    with pytest.raises(DataError, match=message):
        label_quality(p, np.zeros(6, int), block_rows=block_rows)


def test_sums_within_a_thousandth_pass():
    p = np.array([[0.5, 0.5009], [0.5, 0.4991]])
    assert label_quality(p, np.array([0, 1]), "self_confidence").tolist() == [0.5, 0.4991]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 3]), "got 3 in row 2"),
        (np.array([0, -1, 1]), "got -1 in row 1"),
        (np.array([0.0, 1, 2]), "integers"),
        (np.array([0, 1]), "one label for each of 3 rows"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        label_quality(np.full((3, 3), 1 / 3), labels)


def test_matrices_that_do_not_fit_are_refused(tmp_path):
    y = np.zeros(2, int)
    for bad in (np.ones((2, 3), int), np.ones(2), np.ones((0, 3)), torch.ones(2, 3, dtype=torch.int64)):
        with pytest.raises(DataError, match="matrix of floating point numbers"):
            label_quality(bad, y)
    with pytest.raises(DataError, match="at least 2 classes"):
        label_quality(np.ones((2, 1)), y)
    with pytest.raises(SpecError, match="self_confidence, normalised_margin"):
        label_quality(np.ones((2, 1)), y, "entropy")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="block_rows"):
        label_quality(np.full((2, 2), 0.5), y, block_rows=0)
    with pytest.raises(ValueError, match="entropy=True"):
        of_row(row_summary(np.full((2, 2), 0.5), y), "confidence_weighted_entropy")
    with pytest.raises(ValueError, match="counted over all rows"):
        of_row(row_summary(np.full((2, 2), 0.5), y), "corrected_confidence")


def test_files_are_read_without_pickle(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([[object()]]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.ones((2, 2)))
    (tmp_path / "text.npy").write_text("no array")
    for name in ("objects.npy", "text.npy", "missing.npy"):
        with pytest.raises(DataError, match=f"{name} (cannot be read|is no .npy file)"):
            label_quality(tmp_path / name, np.zeros(1, int))
    with pytest.raises(DataError, match="archive"):
        label_quality(tmp_path / "several.npz", np.zeros(2, int))


def test_progress_counts_rows():
    p, y, _ = noisy(10)
    calls = []
    label_quality(p, y, "self_confidence", block_rows=4, progress=lambda *call: calls.append(call))
    assert [call[1:] for call in calls] == [(4, 10), (8, 10), (10, 10)]
