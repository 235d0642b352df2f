"""Statistics of classes: exact in any batches and order, both kinds of covariance, bad input; graphs of confusions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.class_statistics import LARGEST, ClassStatistics, check_covariance, confusion_graph
from weathered.core.rng import generator

CLASSES, WIDTH = 4, 5


def sample(rows=60, seed=0, dtype=torch.float64):
    rng = generator(seed, "rows")
    labels = torch.randint(CLASSES, (rows,), generator=rng)
    mix = torch.randn(CLASSES, WIDTH, WIDTH, generator=rng, dtype=dtype)
    away = torch.randn(rows, WIDTH, generator=rng, dtype=dtype)
    return (away[:, None] @ mix[labels])[:, 0] + 10 * labels[:, None], labels


def of_all_rows(features, labels):
    """Mean and biased covariance of each class, by torch's own."""
    classes = [features[labels == label] for label in range(CLASSES)]
    means = torch.stack([rows.mean(0) for rows in classes])
    return means, torch.stack([torch.cov(rows.T, correction=0) for rows in classes])


@given(st.lists(st.integers(1, 59), max_size=6), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_batches_in_any_order_give_what_all_rows_give(cuts, seed):
    features, labels = sample()
    means, covariances = of_all_rows(features, labels)
    order = torch.randperm(60, generator=generator(seed, "order"))
    full, diagonal = (ClassStatistics(CLASSES, WIDTH, kind, dtype=torch.float64) for kind in ("full", "diagonal"))
    for rows in order.tensor_split(sorted(cuts)):
        for statistics in (full, diagonal):
            statistics.update(features[rows], labels[rows])
    assert torch.equal(full.counts, labels.bincount(minlength=CLASSES))
    for statistics in (full, diagonal):
        assert_close(statistics.means, means)
    assert_close(full.covariances, covariances, atol=1e-10, rtol=1e-10)
    assert_close(diagonal.covariances, covariances.diagonal(dim1=1, dim2=2), atol=1e-10, rtol=1e-10)


def test_single_precision_stays_close_far_from_the_origin():
    features, labels = sample(rows=400)
    statistics = ClassStatistics(CLASSES, WIDTH)
    for rows in torch.arange(400).split(32):
        statistics.update((features[rows] + 20).float(), labels[rows])
    means, covariances = of_all_rows(features + 20, labels)
    assert_close(statistics.means.double(), means, atol=1e-5, rtol=1e-5)
    assert_close(statistics.covariances.double(), covariances, atol=1e-4, rtol=1e-5)


def test_a_class_without_rows_stays_at_zero_and_is_named():
    statistics = ClassStatistics(3, 2)
    statistics.update(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    statistics.update(torch.zeros(0, 2), torch.zeros(0).long())
    assert statistics.unseen == [0, 2]
    assert statistics.means.tolist() == [[0, 0], [1, 2], [0, 0]]
    assert not statistics.covariances.any()


def test_no_gradient_and_no_change_of_what_is_given():
    features, labels = sample(dtype=torch.float32)
    given_features = features.clone().requires_grad_()
    statistics = ClassStatistics(CLASSES, WIDTH)
    statistics.update(given_features, labels)
    assert not statistics.covariances.requires_grad
    assert torch.equal(given_features.detach(), features)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_state_goes_on_bit_for_bit(kind):
    features, labels = sample(dtype=torch.float32)
    whole, first, second = (ClassStatistics(CLASSES, WIDTH, kind) for _ in range(3))
    parts = list(torch.arange(60).split(15))
    for rows in parts:
        whole.update(features[rows], labels[rows])
    for rows in parts[:2]:
        first.update(features[rows], labels[rows])
    second.load_state_dict(first.state_dict())
    for rows in parts[2:]:
        second.update(features[rows], labels[rows])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert not torch.equal(value, first.state_dict()[name])


def test_bad_statistics_are_refused():
    statistics = ClassStatistics(3, 2)
    good = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"expected features \(B, 2\)"):
        statistics.update(torch.zeros(4, 3), torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"expected features \(B, 2\)"):
        statistics.update(good, torch.zeros(3).long())
    for label in (-1, 3):
        with pytest.raises(ValueError, match=rf"labels must be in \[0, 2\] .* got {label}"):
            statistics.update(good, torch.tensor([0, 1, 2, label]))
    with pytest.raises(ValueError, match="features must be finite"):
        statistics.update(torch.tensor([[1.0, torch.nan]]), torch.tensor([0]))
    assert statistics.unseen == [0, 1, 2]
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ClassStatistics(0, 2)
    with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
        ClassStatistics(2, 0)
    with pytest.raises(ValueError, match="must be 'full' or 'diagonal', got 'half'"):
        ClassStatistics(2, 2, "half")  # pyright: ignore[reportArgumentType]


def test_full_covariances_have_a_ceiling_that_names_the_other_kind():
    check_covariance("full", LARGEST // 64, 8)
    with pytest.raises(ValueError, match=r"1000 classes and 2048 features .* use covariance=diagonal"):
        ClassStatistics(1000, 2048)
    assert ClassStatistics(1000, 2048, "diagonal").covariances.shape == (1000, 2048)


def test_confusions_by_hand():
    predictions, labels = torch.tensor([0, 1, 1, 2, 2, 0]), torch.tensor([0, 0, 1, 1, 1, 1])
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]]).double()
    graph = confusion_graph(predictions, labels, 3)
    assert torch.equal(graph, expected)
    assert torch.equal(confusion_graph(torch.nn.functional.one_hot(predictions, 3).float(), labels, 3), expected)


@given(st.integers(0, 100), st.integers(0, 30), st.booleans())
@settings(deadline=None)
def test_rows_of_the_graph_sum_to_one_and_are_not_negative(seed, rows, soft):
    rng = generator(seed, "graph")
    labels = torch.randint(6, (rows,), generator=rng)
    logits = torch.randn(rows, 6, generator=rng)
    graph = confusion_graph(logits.softmax(1) if soft else logits.argmax(1), labels, 6)
    assert_close(graph.sum(1), torch.ones(6).double(), atol=1e-6, rtol=0)
    assert bool((graph >= 0).all())
    for label in set(range(6)) - set(labels.tolist()):
        assert torch.equal(graph[label], torch.eye(6).double()[label])


def test_bad_confusions_are_refused():
    labels = torch.tensor([0, 1, 2])
    for predictions in (torch.tensor([0, 1, 3]), torch.tensor([-1, 1, 2])):
        with pytest.raises(ValueError, match=r"must be in \[0, 2\]"):
            confusion_graph(predictions, labels, 3)
    with pytest.raises(ValueError, match="labels must be in"):
        confusion_graph(labels, labels + 1, 3)
    for predictions in (torch.tensor([0, 1]), torch.eye(4)[:3]):
        with pytest.raises(ValueError, match="expected predictions"):
            confusion_graph(predictions, labels, 3)
    for wrong in (torch.randn(3, 3), torch.full((3, 3), torch.nan), torch.full((3, 3), 0.5)):
        with pytest.raises(ValueError, match="give the softmax of logits"):
            confusion_graph(wrong, labels, 3)
