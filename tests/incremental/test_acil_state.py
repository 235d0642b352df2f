"""ACIL: what its state holds, how learners merge, and what a refused call leaves as it was."""

from pathlib import Path

import pytest
import torch
from ridge import CLASSES, GAMMA, ROWS, D, data, distance, joint, learn

from weathered.incremental.acil import ACIL


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
