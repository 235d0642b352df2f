"""ACIL against closed forms: joint ridge regression, scikit-learn, and the limits of gamma."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ridge import GAMMA, ROWS, WIDTH, D, data, distance, joint, learn
from sklearn.linear_model import Ridge
from torch.nn.functional import one_hot

from weathered.incremental.acil import ACIL, draw_expansion, random_expansion


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, ROWS), max_size=12).map(sorted), st.integers(0, 3), st.booleans())
def test_any_split_equals_joint_ridge(cuts, seed, by_class):
    """Proof. Let A_k = gamma I + sum_{j<=k} H_j^T H_j and Q_k = sum_{j<=k} H_j^T Y_j; joint ridge is A_k^-1 Q_k.

    R_k = A_k^-1 holds for k = 0, and A_k = A_{k-1} + H_k^T H_k with Woodbury's identity gives the update of R.
    If W_{k-1} = A_{k-1}^-1 Q_{k-1}, then Q_{k-1} = A_{k-1} W_{k-1} = (A_k - H_k^T H_k) W_{k-1}, so
    R_k Q_k = R_k (A_k W_{k-1} - H_k^T H_k W_{k-1} + H_k^T Y_k) = W_{k-1} + R_k H_k^T (Y_k - H_k W_{k-1}) = W_k.
    A class not seen yet has a zero column in Q and hence in W, so padding with zero columns is exact. Neither disjoint
    classes nor a batch size enter: hence any cuts, empty batches included, classes sorted or mixed.
    """
    features, labels = data(seed=seed)
    if by_class:
        order = labels.argsort(stable=True)
        features, labels = features[order], labels[order]
    learner = learn(features, labels, cuts)
    expected = joint(learner, features, labels)
    assert distance(learner.W_, expected) < 1e-8
    assert torch.equal(
        learner.predict(features).argmax(1), (random_expansion(features, learner.V_) @ expected).argmax(1)
    )


@pytest.mark.parametrize("size", [1, 7, 30, ROWS])
def test_batch_size_and_order_do_not_matter(size):
    features, labels = data()
    reference = learn(features, labels, [])
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    for rows in (torch.arange(ROWS), order):
        learner = learn(features[rows], labels[rows], list(range(size, ROWS, size)))
        assert distance(learner.W_, reference.W_) < 1e-8
        assert distance(learner.R_, reference.R_) < 1e-8
        assert torch.equal(learner.class_counts_, labels.bincount())


@pytest.mark.parametrize("groups", [[[0, 1, 2, 3, 4, 5]], [[0, 1], [2, 3], [4, 5]], [[5], [3], [1], [0], [2], [4]]])
def test_number_of_phases_does_not_matter(groups):
    features, labels = data()
    learner = ACIL(GAMMA, D)
    for group in groups:
        rows = torch.isin(labels, torch.tensor(group))
        learner.partial_fit(features[rows], labels[rows])
    assert distance(learner.W_, learn(features, labels, []).W_) < 1e-8


def test_r_is_the_inverse_and_only_shrinks():
    features, labels = data()
    learner = ACIL(GAMMA, D)
    A = GAMMA * torch.eye(D, dtype=torch.float64)
    largest = torch.full((D,), 1 / GAMMA, dtype=torch.float64)
    for x, y in zip(features.split(50), labels.split(50), strict=True):
        learner.partial_fit(x, y)
        H = random_expansion(x, learner.V_)
        A += H.T @ H
        assert distance(learner.R_, torch.linalg.inv(A)) < 1e-8
        assert torch.equal(learner.R_, learner.R_.T)
        eigenvalues = torch.linalg.eigvalsh(learner.R_)
        assert eigenvalues[0] > 0
        assert (eigenvalues <= largest * (1 + 1e-9)).all()
        largest = eigenvalues


def test_more_rows_than_the_expansion_is_wide_take_the_sums():
    """ROWS > D is learnt by one inverse of the sums, from scratch and after earlier batches; D > ROWS is not."""
    features, labels = data()
    assert ROWS > D
    for first in (0, 40):
        whole = learn(features, labels, [first])
        parts = learn(features, labels, list(range(17, ROWS, 17)))
        assert distance(whole.W_, parts.W_) < 1e-8
        assert distance(whole.R_, parts.R_) < 1e-8
        assert torch.equal(whole.R_, whole.R_.T)


def test_blocks_wider_than_one_stay_symmetric_and_exact():
    features, labels = data(rows=80)
    learner = learn(features, labels, [33], expansion=600)  # not a multiple of the block of columns
    assert torch.equal(learner.R_, learner.R_.T)
    assert distance(learner.W_, joint(learner, features, labels)) < 1e-8


def test_column_of_an_unseen_class_is_zero_and_masked():
    features, labels = data()
    learner = ACIL(GAMMA, D).partial_fit(features[:10], torch.tensor([0, 2] * 5))
    assert learner.W_.shape == (D, 3)
    learner.partial_fit(features[10:60], labels[10:60] % 2 * 2)
    assert (learner.W_[:, 1] == 0).all()
    assert learner.class_counts_[1] == 0
    # all scores of the seen classes can be negative, where a bare zero column would win
    scores = learner.predict(-features * 100)
    assert torch.isneginf(scores[:, 1]).all()
    assert torch.isfinite(scores[:, [0, 2]]).all()
    learner.partial_fit(features[60:90], torch.full((30,), 4))
    assert (learner.W_[:, [1, 3]] == 0).all()
    assert (learner.W_[:, 4] != 0).any()


def test_empty_batch_changes_nothing_and_a_repeated_one_counts_twice():
    features, labels = data(rows=60)
    learner = learn(features, labels, [])
    before = learner.state_dict()
    learner.partial_fit(features[:0], labels[:0])
    assert all(torch.equal(before[k], learner.state_dict()[k]) for k in ("W", "R", "V", "class_counts"))
    learner.partial_fit(features, labels)
    H = random_expansion(features, learner.V_).numpy()
    twice = Ridge(GAMMA, fit_intercept=False, solver="cholesky").fit(
        H, one_hot(labels).numpy(), sample_weight=np.full(60, 2.0)
    )
    assert distance(learner.W_, torch.tensor(twice.coef_.T)) < 1e-7
    assert distance(learner.W_, before["W"]) > 1e-3


def test_equals_scikit_learn_ridge():
    features, labels = data()
    learner = learn(features, labels, [20, 90, 91])
    ridge = Ridge(alpha=GAMMA, fit_intercept=False, solver="cholesky")
    ridge.fit(random_expansion(features, learner.V_).numpy(), one_hot(labels).numpy())
    assert distance(learner.W_, torch.tensor(ridge.coef_.T)) < 1e-7


def test_limits_of_gamma():
    """gamma -> 0 with fewer rows than D: A^-1 Q -> pinv(H) Y. gamma -> infinity: A -> gamma I, so W -> Q / gamma."""
    rng = torch.Generator().manual_seed(3)
    features, labels = torch.randn(40, WIDTH, generator=rng), torch.arange(40) % 4
    small = learn(features, labels, [10, 25], gamma=1e-7)
    H, Y = random_expansion(features, small.V_), one_hot(labels).double()
    assert distance(small.W_, torch.linalg.pinv(H) @ Y) < 1e-4
    assert (H @ small.W_ - Y).abs().max() < 1e-4
    large = learn(features, labels, [10, 25], gamma=1e9)
    assert distance(large.W_ * 1e9, H.T @ Y) < 1e-5


def test_expansion_is_drawn_like_a_linear_layer_and_from_the_seed():
    V = draw_expansion(16, 5000, torch.Generator().manual_seed(0))
    assert V.abs().max() <= 0.25
    assert float(V.var()) == pytest.approx(0.25**2 / 3, rel=0.02)
    features, labels = data(rows=20)
    a, b, c = (ACIL(GAMMA, D, seed=seed).partial_fit(features, labels) for seed in (1, 1, 2))
    assert torch.equal(a.V_, b.V_)
    assert not torch.equal(a.V_, c.V_)
    assert (random_expansion(features, V[:WIDTH]) >= 0).all()
