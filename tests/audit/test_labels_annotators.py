"""Several annotators: known answers, recovery of known confusions, and agreement."""

import numpy as np
import pytest
import torch

from weathered.audit.labels.annotators import (
    annotator_quality,
    dawid_skene,
    krippendorff_alpha,
    majority_vote,
)
from weathered.core.errors import DataError


def annotate(
    confusion: np.ndarray, n: int, missing: float = 0.0, prior: list[float] | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N, M) drawn from confusion matrices (M, C, C), and the true classes (N,)."""
    rng = np.random.default_rng(seed)
    annotators, size, _ = confusion.shape
    true = rng.choice(size, size=n, p=prior)
    cumulated = confusion[:, true].cumsum(axis=2)
    labels = (cumulated < rng.random((annotators, n, 1))).sum(axis=2).clip(max=size - 1).T
    hide = rng.random((n, annotators)) < missing
    hide[np.arange(n), rng.integers(annotators, size=n)] = False
    return np.where(hide, -1, labels), true


def diagonal(size: int, accuracy: float) -> np.ndarray:
    return np.full((size, size), (1 - accuracy) / (size - 1)) + np.eye(size) * (accuracy - (1 - accuracy) / (size - 1))


def test_majority_with_missing_labels_and_ties():
    found = majority_vote(np.array([[0, 1, 1], [2, -1, 0], [-1, -1, 1], [2, 2, 2]]), 3)
    assert found.labels.tolist() == [1, 0, 1, 2]
    assert found.confidence == pytest.approx([2 / 3, 1 / 2, 1, 1])
    assert found.tied.tolist() == [False, True, False, False]


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_known_confusion_matrices_and_prior_are_recovered(missing):
    rng = np.random.default_rng(1)
    true_confusion = np.stack([0.55 * np.eye(3) + 0.45 * rng.dirichlet(np.ones(3), 3) for _ in range(7)])
    labels, true = annotate(true_confusion, 6000, missing, [0.5, 0.3, 0.2])
    model = dawid_skene(labels, 3)
    assert model.converged
    assert model.confusion == pytest.approx(true_confusion, abs=0.06)
    assert model.prior == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    majority = majority_vote(labels, 3)
    assert (model.consensus.labels == true).mean() > (majority.labels == true).mean()
    assert model.posterior.sum(axis=1) == pytest.approx(np.ones(6000))
    assert model.confusion.sum(axis=2) == pytest.approx(np.ones((7, 3)))
    # the posterior is calibrated: samples at 90 % are right in 90 % of cases
    sure = model.consensus.confidence > 0.9
    assert (model.consensus.labels == true)[sure].mean() == pytest.approx(
        model.consensus.confidence[sure].mean(), abs=0.02
    )


def test_objective_never_falls():
    labels, _ = annotate(np.stack([diagonal(4, a) for a in (0.9, 0.6, 0.5, 0.4)]), 300, 0.3)
    for smoothing in (1e-6, 0.01, 1.0):
        gains = np.diff(dawid_skene(labels, 4, smoothing=smoothing).objective)
        assert (gains > -1e-8).all()


def test_one_expert_outweighs_a_crowd_that_guesses_and_a_constant_confusion_is_undone():
    expert, guesser, swapped = diagonal(2, 0.97), np.full((2, 2), 0.5), diagonal(2, 0.05)
    labels, true = annotate(np.stack([expert, expert, swapped, guesser, guesser, guesser]), 2000)
    model, majority = dawid_skene(labels, 2), majority_vote(labels, 2)
    assert (model.consensus.labels == true).mean() > 0.98
    assert (majority.labels == true).mean() < 0.9
    quality = [estimate.value for estimate in model.quality if estimate]
    assert quality == pytest.approx([0.97, 0.97, 0.05, 0.5, 0.5, 0.5], abs=0.04)
    assert all(e.low <= e.value <= e.high and e.n == 2000 for e in model.quality if e)


def test_annotators_who_agree_give_certainty():
    labels = np.repeat(np.arange(30)[:, None] % 3, 4, axis=1)
    model = dawid_skene(labels, 3)
    assert np.array_equal(model.consensus.labels, labels[:, 0])
    assert model.consensus.confidence.min() > 0.999
    for quality in annotator_quality(labels, labels[:, 0], 3):
        assert quality.accuracy is not None
        assert quality.accuracy[:2] == (1.0, pytest.approx(quality.accuracy.low))
        assert quality.agreement is not None
        assert quality.agreement.value == 1


def test_permuted_annotators_permute_the_model():
    labels, _ = annotate(np.stack([diagonal(3, a) for a in (0.9, 0.7, 0.5)]), 400, 0.2)
    one, other = dawid_skene(labels, 3), dawid_skene(labels[:, [2, 0, 1]], 3)
    assert other.confusion == pytest.approx(one.confusion[[2, 0, 1]], abs=1e-9)
    assert other.posterior == pytest.approx(one.posterior, abs=1e-9)


def test_quality_by_hand():
    labels = np.array([[0, 0, 1], [1, 1, -1], [0, -1, -1], [1, 0, 1]])
    first, second, third = annotator_quality(labels, np.array([0, 1, 0, 1]), 2)
    assert first.accuracy is not None
    assert second.accuracy is not None
    assert third.accuracy is not None
    assert (first.labelled, second.labelled, third.labelled) == (4, 3, 2)
    assert (first.accuracy.value, second.accuracy.value, third.accuracy.value) == pytest.approx((1, 2 / 3, 1 / 2))
    assert first.agreement is not None
    # with the others of rows 0, 1 and 3: one of two, one of one, one of two
    assert first.agreement.value == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert first.agreement.n == 3


def test_an_annotator_without_labels_is_named_by_none():
    labels = np.array([[0, -1], [1, -1]])
    _, absent = annotator_quality(labels, np.array([0, 1]), 2)
    assert absent == (0, None, None)
    assert dawid_skene(labels, 2).quality[1] is None


def test_alpha_of_the_published_example():
    """Krippendorff, "Computing Krippendorff's alpha-reliability", 2011, section C: four observers, twelve units."""
    x = -1
    rows = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, x, x, x],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, x, 3],
        [x, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, x],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, x],
    ]
    labels = np.array(rows).T
    labels = np.where(labels > 0, labels - 1, -1)
    alpha = krippendorff_alpha(labels, 5, torch.Generator().manual_seed(0))
    assert alpha.value == pytest.approx(0.743, abs=5e-4)
    assert alpha.low < alpha.value < alpha.high
    assert alpha.n == 11


def test_alpha_is_one_for_agreement():
    same = np.repeat(np.arange(50)[:, None] % 4, 3, axis=1)
    assert krippendorff_alpha(same, 4, torch.Generator().manual_seed(0)).value == 1


def test_alpha_of_chance_is_zero_on_average_and_its_interval_covers_it():
    found = [
        krippendorff_alpha(
            np.random.default_rng(seed).integers(4, size=(300, 3)),
            4,
            torch.Generator().manual_seed(seed),
            resamples=200,
        )
        for seed in range(80)
    ]
    values = np.array([alpha.value for alpha in found])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert np.mean([alpha.low <= 0 <= alpha.high for alpha in found]) >= 0.87


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="got 3 of annotator 1 in row 0"):
        majority_vote(np.array([[0, 3]]), 3)
    with pytest.raises(DataError, match="Row 1 has no label"):
        dawid_skene(np.array([[0, 1], [-1, -1]]), 2)
    with pytest.raises(DataError, match="integers \\(N, M\\)"):
        majority_vote(np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="smoothing"):
        dawid_skene(np.array([[0]]), 2, smoothing=0)
    with pytest.raises(DataError, match="two labels"):
        krippendorff_alpha(np.array([[0, -1], [-1, 1]]), 2, torch.Generator())
