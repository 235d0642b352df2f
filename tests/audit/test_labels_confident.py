"""Confident learning: the definition by loops, calibration, and issues against a brute-force search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_data import noisy

from weathered.audit.labels import issues as issues_module
from weathered.audit.labels.confident import calibrate, calibrated_counts, confident_learning
from weathered.audit.labels.issues import find_issues, issues_of
from weathered.core.errors import SpecError

METHODS = ("prune_by_noise_rate", "by_class", "both", "confident_off_diagonal")


def joint_by_loops(p: np.ndarray, y: np.ndarray, argmax_over: str) -> np.ndarray:
    size = p.shape[1]
    bars = [p[y == k, k].mean() - 1e-6 if (y == k).any() else np.inf for k in range(size)]
    joint = np.zeros((size, size), int)
    for row, label in zip(p, y, strict=True):
        reached = [k for k in range(size) if row[k] >= bars[k]]
        if reached:
            over = range(size) if argmax_over == "all" and len(reached) > 1 else reached
            joint[label, max(over, key=lambda k: row[k])] += 1
    for k in range(size):
        joint[k, k] = max(joint[k, k], 1)
    return joint


@pytest.mark.parametrize("argmax_over", ["confident", "all"])
@pytest.mark.parametrize("seed", range(4))
def test_joint_is_that_of_the_definition(argmax_over, seed):
    p, y, _ = noisy(num_classes=3 + 4 * seed, sharpness=1.0, seed=seed)
    learnt = confident_learning(p, y, argmax_over=argmax_over)
    assert np.array_equal(learnt.joint, joint_by_loops(p, y, argmax_over))


def test_rules_differ_where_the_most_probable_class_is_below_its_threshold():
    p = np.array([[0.9, 0.1, 0.0], [0.4, 0.25, 0.35], [0.4, 0.35, 0.25], [0.6, 0.2, 0.2]])
    y = np.array([0, 1, 2, 0])
    # thresholds .75, .25, .25: the second row reaches the last two, of which the third is larger
    assert confident_learning(p, y).classes.tolist() == [0, 2, 1, -1]
    assert confident_learning(p, y, argmax_over="all").classes.tolist() == [0, 0, 0, -1]


def test_known_thresholds_and_joint():
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    y = np.array([0, 0, 1, 1, 1])
    learnt = confident_learning(p, y)
    assert learnt.thresholds == pytest.approx([0.8, 0.5])
    assert learnt.classes.tolist() == [0, -1, 1, 0, 1]
    assert learnt.joint.tolist() == [[1, 0], [1, 2]]
    assert learnt.calibrated.tolist() == [[2, 0], [1, 2]]


def test_certain_labels_give_a_diagonal_joint_and_no_issues():
    y = np.arange(40) % 4
    learnt = confident_learning(np.eye(4)[y], y)
    assert np.array_equal(learnt.joint, np.eye(4) * 10)
    for method in METHODS:
        assert not issues_of(learnt, np.eye(4)[y], method=method).mask.any()


def test_equal_predictions_count_as_their_most_probable_class():
    y = np.arange(30) % 3
    learnt = confident_learning(np.tile([0.2, 0.5, 0.3], (30, 1)), y)
    assert (learnt.classes == 1).all()


def test_a_class_without_samples_is_never_confident():
    p, y, _ = noisy(num_classes=4)
    y = np.where(y == 2, 1, y)
    learnt = confident_learning(p, y)
    assert learnt.thresholds[2] == np.inf
    assert not (learnt.classes == 2).any()
    assert (learnt.calibrated[2] == 0).all()


def test_a_probability_of_zero_reaches_no_threshold():
    p = np.tile([1.0, 0.0, 0.0], (6, 1))
    assert (confident_learning(p, np.array([0, 0, 1, 1, 2, 2])).classes == 0).all()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_calibration_keeps_rows_and_is_within_one_of_the_exact_share(size, seed):
    rng = np.random.default_rng(seed)
    joint = rng.integers(0, 6, (size, size)) + np.eye(size, dtype=int)
    counts = rng.integers(0, 1000, size)
    whole, exact = calibrated_counts(joint, counts), calibrate(joint, counts)
    assert np.array_equal(whole.sum(axis=1), counts)
    assert exact.sum(axis=1) == pytest.approx(counts)
    assert (np.abs(whole - exact) < 1).all()
    assert (whole[joint == 0] == 0).all()
    assert np.array_equal(calibrated_counts(joint, joint.sum(axis=1)), joint)


def test_equal_remainders_go_to_the_diagonal_first_and_then_around():
    assert calibrated_counts(np.ones((3, 3), int), np.array([4, 5, 2])).tolist() == [[2, 1, 1], [1, 2, 2], [1, 0, 1]]


def issues_by_loops(learnt, p, method: str) -> set[int]:
    y, size = learnt.labels, p.shape[1]
    by_class, by_rate = set(), set()
    for i in range(size):
        rows = np.flatnonzero(y == i)
        if len(rows) <= 1:
            continue
        kept = max(learnt.calibrated[i, i], 1)
        by_class |= set(sorted(rows, key=lambda r: (p[r, i], r))[: len(rows) - kept])
        for j in set(range(size)) - {i}:
            by_rate |= set(sorted(rows, key=lambda r: (p[r, i] - p[r, j], r))[: learnt.calibrated[i, j]])
    found = {"by_class": by_class, "prune_by_noise_rate": by_rate, "both": by_class & by_rate}.get(method)
    if found is None:
        found = set(np.flatnonzero((learnt.classes >= 0) & (learnt.classes != y)))
    return {int(r) for r in found if p[r].max() > p[r, y[r]]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_issues_are_those_of_the_definition(method, seed):
    p, y, _ = noisy(300, num_classes=3 + 3 * seed, noise=0.4, sharpness=1.5, seed=seed)
    learnt = confident_learning(p, y)
    assert (learnt.calibrated.diagonal() >= 1).all()
    assert set(issues_of(learnt, p, method=method).rows.tolist()) == issues_by_loops(learnt, p, method)


@pytest.mark.parametrize("block_rows", [1, 13, 299])
@pytest.mark.parametrize("pending", [0, 50, 2**20])
def test_blocks_files_and_portions_change_nothing(tmp_path, monkeypatch, block_rows, pending):
    p, y, _ = noisy(300, 6, noise=0.4, sharpness=1.5)
    # rounded probabilities have many equal margins, which must fall to the same rows
    p = np.round(p, 2)
    p[:, 0] += 1 - p.sum(axis=1)
    p = np.abs(p).astype(np.float32)
    np.save(tmp_path / "p.npy", p)
    whole = {m: find_issues(p, y, method=m, score="normalised_margin") for m in METHODS}
    monkeypatch.setattr(issues_module, "PENDING", pending)
    for method in METHODS:
        for form in (p, torch.from_numpy(p), tmp_path / "p.npy"):
            found = find_issues(form, y, method=method, score="normalised_margin", block_rows=block_rows)
            for mine, expected in zip(found, whole[method], strict=True):
                assert np.array_equal(mine, expected)
    assert set(whole["prune_by_noise_rate"].rows) == issues_by_loops(
        confident_learning(p, y), p.astype(float), "prune_by_noise_rate"
    )


@pytest.mark.parametrize("seed", range(3))
def test_ideal_probabilities_find_exactly_the_wrong_labels(seed):
    """Theorem 1 of the paper: p = P(given | true) of noise with a dominant diagonal finds all errors and no others."""
    rng = np.random.default_rng(seed)
    true = rng.integers(4, size=4000)
    transition = 0.6 * np.eye(4) + 0.4 * rng.dirichlet(np.ones(4), size=4)
    given = (transition[true].cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    for method in METHODS:
        assert np.array_equal(find_issues(transition[true], given, method=method).mask, given != true)


def test_issues_are_ranked_and_never_name_the_most_probable_label():
    p, y, _ = noisy(2000, 5, noise=0.3)
    for method in METHODS:
        for score in ("self_confidence", "normalised_margin", "confidence_weighted_entropy"):
            found = find_issues(p, y, method=method, score=score)
            assert np.array_equal(np.sort(found.rows), found.mask.nonzero()[0])
            assert (np.diff(found.score[found.rows]) >= 0).all()
            assert (p.argmax(axis=1)[found.rows] != y[found.rows]).all()
            assert np.array_equal(found.suggested, p.argmax(axis=1))


def test_both_is_the_intersection():
    p, y, _ = noisy(2000, 5, noise=0.3, sharpness=1.0)
    rate, of_class, both = (find_issues(p, y, method=m).mask for m in METHODS[:3])
    assert np.array_equal(both, rate & of_class)
    assert not np.array_equal(rate, of_class)


def test_each_class_keeps_what_is_asked_for():
    p = np.tile([0.9, 0.1], (20, 1))
    p[:4] = [0.1, 0.9]
    y = np.repeat([1, 0], [10, 10])
    for keep in (0, 1, 3, 9, 10):
        for method in METHODS[:3]:
            mask = find_issues(p, y, method=method, keep_per_class=keep).mask
            assert (np.bincount(y[~mask], minlength=2) >= keep).all()
    assert not find_issues(p, y, keep_per_class=10).mask.any()


def test_a_diagonal_below_what_is_kept_takes_from_the_other_counts():
    counts = issues_module.counts_to_prune(np.array([[0, 3, 1], [0, 5, 0], [1, 1, 1]]), np.array([4, 5, 3]), 1)
    # the first row lacks 1, of which its one other count besides the largest share gives: 3 - 1 and 1 - 1
    assert counts.tolist() == [[0, 2, 0], [0, 0, 0], [1, 1, 0]]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 1000))
def test_names_of_classes_do_not_matter(names, seed):
    p, y, _ = noisy(120, 4, noise=0.3, seed=seed)
    names = np.array(names)
    learnt, renamed = confident_learning(p, y), confident_learning(p[:, np.argsort(names)], names[y])
    assert np.array_equal(renamed.joint[np.ix_(names, names)], learnt.joint)
    # equal remainders are shared out by the order of the classes, so the same integers are given to both
    counts = np.zeros_like(learnt.calibrated)
    counts[np.ix_(names, names)] = learnt.calibrated
    same = issues_of(replace(renamed, calibrated=counts), p[:, np.argsort(names)])
    assert np.array_equal(same.mask, issues_of(learnt, p).mask)


def test_unknown_names_are_refused():
    p, y, _ = noisy(20)
    with pytest.raises(SpecError, match="method to find issues"):
        find_issues(p, y, method="confident_learning")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpecError, match="argmax_over"):
        find_issues(p, y, argmax_over="some")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="keep_per_class"):
        find_issues(p, y, keep_per_class=-1)
