"""Out-of-sample probabilities: each row once and never by its own model, and a run that goes on where it stopped."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weathered.audit.labels.folds import out_of_sample_probabilities
from weathered.core.errors import DataError
from weathered.data.splits import stratified_folds

NAMES = ("ant", "bee", "cat")
LABELS = np.array([0] * 7 + [1] * 20 + [2] * 2)[np.random.default_rng(0).permutation(29)]


def by_row(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Probabilities that tell which row they belong to and how many rows they were learnt from."""
    assert not set(train) & set(held)
    assert sorted([*train, *held]) == list(range(len(LABELS)))
    assert set(LABELS[train]) == {0, 1, 2}
    first = held / 100
    return np.stack([first, 1 - first - len(train) / 1000, np.full(len(held), len(train) / 1000)], axis=1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data(), st.integers(0, 100))
def test_folds_are_stratified(labels, data, seed):
    labels = np.array(labels)
    folds = data.draw(st.integers(2, len(labels)))
    fold = stratified_folds(torch.from_numpy(labels), folds, torch.Generator().manual_seed(seed)).numpy()
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for c in range(5):
        assert np.ptp(np.bincount(fold[labels == c], minlength=folds)) <= 1


def test_draws_depend_on_the_seed():
    labels = torch.from_numpy(LABELS)
    one, same, other = (stratified_folds(labels, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("folds", [2, 5, 29])
@pytest.mark.parametrize("saved", [False, True])
def test_each_row_comes_once_from_a_model_that_did_not_see_it(tmp_path, folds, saved):
    folder = tmp_path / "folds" if saved else None
    p = out_of_sample_probabilities(by_row, LABELS, NAMES, folds=folds, folder=folder)
    assert p.dtype == np.float32
    assert p[:, 0] == pytest.approx(np.arange(29) / 100)
    assert p[:, 2] * 1000 == pytest.approx(np.full(29, 29 - 29 // folds), abs=1.01)
    if saved:
        assert isinstance(p, np.memmap)
        assert not p.flags.writeable


def test_an_interrupted_run_goes_on_with_the_folds_that_are_missing(tmp_path):
    calls = []

    def interrupted(train, held):
        calls.append(held)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return torch.from_numpy(by_row(train, held))

    with pytest.raises(KeyboardInterrupt):
        out_of_sample_probabilities(interrupted, LABELS, NAMES, folder=tmp_path)
    p = out_of_sample_probabilities(interrupted, LABELS, NAMES, folder=tmp_path)
    assert len(calls) == 6
    assert np.array_equal(calls[2], calls[3])
    assert np.array_equal(p, out_of_sample_probabilities(by_row, LABELS, NAMES))

    def never(train, held):
        raise AssertionError

    assert np.array_equal(out_of_sample_probabilities(never, LABELS, NAMES, folder=tmp_path), p)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("change", [{"seed": 1}, {"folds": 4}, {"key": "other"}, {"labels": LABELS[::-1].copy()}])
def test_a_folder_of_another_plan_is_refused(tmp_path, change):
    out_of_sample_probabilities(by_row, LABELS, NAMES, folder=tmp_path)
    labels = change.pop("labels", LABELS)
    with pytest.raises(DataError, match="Choose another folder"):
        out_of_sample_probabilities(by_row, labels, NAMES, folder=tmp_path, **change)


def test_damaged_files_are_named(tmp_path):
    out_of_sample_probabilities(by_row, LABELS, NAMES, folder=tmp_path)
    (tmp_path / "probabilities.npy").unlink()
    np.save(tmp_path / "fold-1.npy", np.ones((2, 3), np.float32))
    with pytest.raises(DataError, match="fold-1.npy holds \\(2, 3\\)"):
        out_of_sample_probabilities(by_row, LABELS, NAMES, folder=tmp_path)
    (tmp_path / "fold-1.npy").write_bytes(b"short")
    with pytest.raises(DataError, match="fold-1.npy is no .npy file of numbers"):
        out_of_sample_probabilities(by_row, LABELS, NAMES, folder=tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DataError, match="plan.json cannot be read"):
        out_of_sample_probabilities(by_row, LABELS, NAMES, folder=tmp_path)


def test_progress_and_plan(tmp_path):
    calls = []
    out_of_sample_probabilities(
        by_row, LABELS, NAMES, folds=2, folder=tmp_path, progress=lambda *call: calls.append(call)
    )
    assert calls == [("folds", 1, 2), ("folds", 2, 2)]
    assert json.loads((tmp_path / "plan.json").read_text())["folds"] == 2


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 0, 1, 2, 2], "'bee' has 1 sample,"), ([0, 0, 1, 1], "'cat' has 0")]
)
def test_a_class_that_cannot_be_held_out_is_refused(labels, message):
    with pytest.raises(DataError, match=message):
        out_of_sample_probabilities(by_row, np.array(labels), NAMES, folds=2)


def test_answers_that_do_not_fit_are_refused():
    for answer, message in (
        (lambda train, held: np.ones((len(held), 2)), "must return \\("),
        (lambda train, held: np.ones((len(held), 3)), "row 0 sums to 3"),
        (lambda train, held: np.ones((len(held), 3), int), "floating point"),
    ):
        with pytest.raises(DataError, match=message):
            out_of_sample_probabilities(answer, LABELS, NAMES)
    for folds in (1, 30):
        with pytest.raises(ValueError, match="folds must be in \\[2, 29\\]"):
            out_of_sample_probabilities(by_row, LABELS, NAMES, folds=folds)
