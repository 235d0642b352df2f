"""ACIL against closed forms: joint ridge regression, scikit-learn, and the limits of gamma."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch.nn.functional import one_hot

from weathered.incremental.acil import ACIL, draw_expansion, random_expansion

WIDTH, D, CLASSES, ROWS = 12, 96, 6, 300
GAMMA = 0.1


def data(rows: int = ROWS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features, the hard case for the recursion, and labels that depend on them."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=rng, dtype=torch.float64) * torch.logspace(0, -3, WIDTH).double()
    features = torch.randn(rows, WIDTH, generator=rng, dtype=torch.float64) @ mixing.T + 1
    noise = torch.rand(rows, CLASSES, generator=rng, dtype=torch.float64)
    labels = (features @ torch.randn(WIDTH, CLASSES, generator=rng, dtype=torch.float64) + noise).argmax(1)
    labels[:CLASSES] = torch.arange(CLASSES)
    return features, labels


def joint(learner: ACIL, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    H = random_expansion(features, learner.V_)
    A = learner.gamma * torch.eye(H.shape[1], dtype=H.dtype) + H.T @ H
    return torch.linalg.solve(A, H.T @ one_hot(labels, learner.W_.shape[1]).to(H))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def learn(features: torch.Tensor, labels: torch.Tensor, cuts: list[int], **options) -> ACIL:
    learner = ACIL(**{"gamma": GAMMA, "expansion": D, "chunk_size": 64, **options})
    for rows in torch.arange(len(labels)).tensor_split(cuts):
        learner.partial_fit(features[rows], labels[rows])
    return learner


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


def test_state_does_not_grow_with_the_data_and_is_a_copy():
    features, labels = data()
    few, many = learn(features[:20], labels[:20], []), learn(features, labels, list(range(20, ROWS, 20)))
    shapes = [{k: v.shape for k, v in learner.state_dict().items() if k != "gamma"} for learner in (few, many)]
    assert shapes[0] == shapes[1]
    assert set(shapes[0]) == {"W", "R", "V", "class_counts"}
    state = few.state_dict()
    kept = state["R"].clone()
    few.partial_fit(features[20:60], labels[20:60])
    assert torch.equal(state["R"], kept)
    assert not torch.equal(few.R_, kept)
    few.load_state_dict(state)
    few.partial_fit(features[20:60], labels[20:60])
    assert torch.equal(state["R"], kept)


def test_saving_and_loading_between_phases_changes_nothing(tmp_path: Path):
    features, labels = data()
    straight = learn(features, labels, [50, 100])
    half = ACIL(GAMMA, D, chunk_size=64).partial_fit(features[:50], labels[:50])
    torch.save(half.state_dict(), tmp_path / "state.pt")
    resumed = ACIL(GAMMA, D, seed=99, chunk_size=64)  # V comes from the state, not from the seed
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    resumed.partial_fit(features[50:100], labels[50:100]).partial_fit(features[100:], labels[100:])
    for name in ("W", "R", "V", "class_counts"):
        assert torch.equal(straight.state_dict()[name], resumed.state_dict()[name])
    with pytest.raises(ValueError, match="gamma"):
        ACIL(0.2, D).load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match="96"):
        ACIL(GAMMA, D + 1).load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match="keys"):
        resumed.load_state_dict({"W": torch.zeros(D, 2)})
    resumed.load_state_dict(ACIL(GAMMA, D).state_dict())
    with pytest.raises(ValueError, match="no data"):
        resumed.predict(features)


def test_merged_workers_equal_one_learner():
    """A1 + A2 - gamma I is the A of all rows and A1 W1 + A2 W2 their sum of H^T Y, whatever classes each has seen."""
    features, labels = data()
    low = labels < 3
    shares = [low & (torch.arange(ROWS) % 2 == 0), low & (torch.arange(ROWS) % 2 == 1), ~low]
    workers = [ACIL(GAMMA, D).partial_fit(features[share], labels[share]) for share in shares]
    others = [worker.state_dict() for worker in workers[1:]]
    merged = workers[0].merge(workers[1]).merge(workers[2]).merge(ACIL(GAMMA, D))
    reference = learn(features, labels, [])
    assert distance(merged.W_, reference.W_) < 1e-8
    assert distance(merged.R_, reference.R_) < 1e-8
    assert torch.equal(merged.class_counts_, reference.class_counts_)
    for worker, before in zip(workers[1:], others, strict=True):
        assert all(torch.equal(before[k], worker.state_dict()[k]) for k in ("W", "R", "V", "class_counts"))
    # learning goes on after a merge, also for one that starts empty
    more, more_labels = data(rows=40, seed=9)
    late = ACIL(GAMMA, D).merge(merged).partial_fit(more, more_labels)
    assert distance(late.W_, joint(late, torch.cat([features, more]), torch.cat([labels, more_labels]))) < 1e-8
    with pytest.raises(ValueError, match="same seed"):
        merged.merge(ACIL(GAMMA, D, seed=1).partial_fit(features, labels))
    with pytest.raises(ValueError, match="equal gamma"):
        merged.merge(ACIL(GAMMA * 2, D))


def test_fit_forgets_what_came_before_but_not_on_bad_input():
    features, labels = data()
    learner = ACIL(GAMMA, D).fit(features, labels)
    before = learner.state_dict()
    with pytest.raises(ValueError, match="at least one row"):
        learner.fit(features[:0], labels[:0])
    with pytest.raises(ValueError, match="finite"):
        learner.fit(features * torch.nan, labels)
    assert torch.equal(learner.R_, before["R"])
    learner.fit(features[:, :5], labels)  # another width is a new start
    assert distance(learner.W_, joint(learner, features[:, :5], labels)) < 1e-8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.index_fill(0, torch.tensor([7]), torch.nan), y), "row 7"),
        (lambda x, y: (x.index_fill(0, torch.tensor([7]), torch.inf), y), "row 7"),
        (lambda x, y: (x, y.index_fill(0, torch.tensor([3]), -1)), "row 3"),
        (lambda x, y: (x[:, 1:], y), "width 12"),
        (lambda x, y: (x, y[1:]), "labels must be integers of shape"),
        (lambda x, y: (x, y.double()), "labels must be integers"),
        (lambda x, y: (x.long(), y), "features must be floats"),
        (lambda x, y: (x[0], y), "features must be floats"),
        (lambda x, y: (x * 1e200, y), "positive definite"),
    ],
)
def test_bad_input_raises_before_anything_changes(change, message):
    features, labels = data()
    learner = learn(features[:50], labels[:50], [])
    before = learner.state_dict()
    for rows in (slice(0, 60), slice(0, ROWS)):  # both ways of learning: by rows and by sums
        with pytest.raises(ValueError, match=message):
            learner.partial_fit(*change(features[rows], labels[rows]))
        for name in ("W", "R", "V", "class_counts"):
            assert torch.equal(before[name], learner.state_dict()[name])


def test_arguments_and_precision():
    for gamma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gamma"):
            ACIL(gamma)
    with pytest.raises(ValueError, match="expansion"):
        ACIL(expansion=0)
    assert ACIL().dtype == torch.float64
    features, labels = data()
    single = learn(features, labels, [], gamma=10.0, single_precision=True)
    assert single.W_.dtype == torch.float32
    assert distance(single.W_.double(), learn(features, labels, [], gamma=10.0).W_) < 1e-3
    for dtype in (torch.float16, torch.float32):
        assert learn(features.to(dtype), labels, []).W_.dtype == torch.float64
    with pytest.raises(ValueError, match="no data"):
        ACIL().predict(features)
    with pytest.raises(ValueError, match="finite"):
        single.predict(features * torch.nan)
    assert single.predict(features[:0]).shape == (0, CLASSES)


def test_caller_keeps_his_tensors_and_no_graph_is_kept():
    features, labels = data(rows=60)
    features.requires_grad_()
    before, labels_before = features.detach().clone(), labels.clone()
    learner = learn(features, labels, [30])
    assert not learner.predict(features).requires_grad
    assert torch.equal(features, before)
    assert torch.equal(labels, labels_before)


def test_expansion_is_drawn_like_a_linear_layer_and_from_the_seed():
    V = draw_expansion(16, 5000, torch.Generator().manual_seed(0))
    assert V.abs().max() <= 0.25
    assert float(V.var()) == pytest.approx(0.25**2 / 3, rel=0.02)
    features, labels = data(rows=20)
    a, b, c = (ACIL(GAMMA, D, seed=seed).partial_fit(features, labels) for seed in (1, 1, 2))
    assert torch.equal(a.V_, b.V_)
    assert not torch.equal(a.V_, c.V_)
    assert (random_expansion(features, V[:WIDTH]) >= 0).all()
