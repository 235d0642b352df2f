"""Baselines of an episode against scikit-learn, torch and closed forms, all episodes at once."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC
from torch import nn
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.fewshot.classifiers import (
    LOGISTIC,
    baselines,
    linear_head,
    logistic_regression,
    nearest_centroid,
    on_support,
    support_rows,
    support_vectors,
)

E, N, K, D, B = 6, 4, 3, 8, 40


@pytest.fixture(scope="module")
def episodes():
    """Rows (E, N K, D) around class means, labels (N K,), queries (E, B, D) hard enough that classifiers disagree."""
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(E, N, D, generator=rng)
    labels = torch.arange(N).repeat_interleave(K)
    rows = means[:, labels] + 0.8 * torch.randn(E, N * K, D, generator=rng)
    asked = torch.randint(N, (E, B), generator=rng)
    queries = means.gather(1, asked[..., None].expand(-1, -1, D)) + 1.5 * torch.randn(E, B, D, generator=rng)
    return rows, labels, queries


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (logistic_regression, lambda: LogisticRegression(C=1.0, max_iter=1000)),
        (support_vectors, lambda: LinearSVC(C=10.0, random_state=0)),
        (nearest_centroid, NearestCentroid),
    ],
)
def test_each_episode_is_fitted_by_itself(episodes, ours, theirs):
    rows, labels, queries = episodes
    expected = [theirs().fit(x, labels).predict(q) for x, q in zip(rows.numpy(), queries.numpy(), strict=True)]
    assert torch.equal(ours(rows, labels, queries), torch.as_tensor(np.stack(expected)))


@pytest.mark.parametrize("ours", [logistic_regression, nearest_centroid])
def test_a_row_of_weight_two_counts_as_two_rows(episodes, ours):
    rows, labels, queries = episodes
    weights = torch.ones(len(labels))
    weights[::3] = 2.0
    twice = torch.cat([rows, rows[:, ::3]], 1)
    expected = ours(twice, torch.cat([labels, labels[::3]]), queries)
    assert torch.equal(ours(rows, labels, queries, weights), expected)
    assert not torch.equal(ours(rows, labels, queries), expected)


def test_the_head_is_torchs_own_descent(episodes):
    """One episode by itself with a linear layer, its optimizer and the same order of rows."""
    rows, labels, queries = episodes
    numbers = [5, 3, 8, 13, 2, 7]
    found = linear_head(rows, labels, queries, numbers, seed=4, learning_rate=0.3, epochs=5)
    for episode, number in enumerate(numbers):
        layer = nn.Linear(D, N)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), 0.3, momentum=0.9, dampening=0.9, weight_decay=1e-3)
        for order in torch.rand(5, N * K, generator=generator(4, "linear head", number)).argsort(1):
            for batch in order.split(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer(rows[episode, batch]), labels[batch]).backward()
                optimizer.step()
        assert torch.equal(found[episode], layer(queries[episode]).argmax(1))


def test_without_steps_the_head_answers_the_first_class(episodes):
    rows, labels, queries = episodes
    assert not linear_head(rows, labels, queries, range(E), epochs=0).any()


def test_episodes_do_not_see_each_other(episodes):
    rows, labels, queries = episodes
    whole = linear_head(rows, labels, queries, list(range(E)), epochs=10)
    parts = [linear_head(rows[e : e + 1], labels, queries[e : e + 1], [e], epochs=10) for e in range(E)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(nearest_centroid(rows, labels, queries)[2:3], nearest_centroid(rows[2:3], labels, queries[2:3]))


def test_with_one_row_of_each_class_the_nearest_row_wins(episodes):
    rows, _, queries = episodes
    one = rows[:, ::K]
    assert torch.equal(nearest_centroid(one, torch.arange(N), queries), torch.cdist(queries, one).argmin(2))


def test_baselines_take_maps_and_rows_alike(episodes):
    rows, labels, queries = episodes
    support = rows.unflatten(1, (N, K))
    maps = support[..., None, None] + torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    flat, found = support_rows(maps)
    assert_close(flat, rows)
    assert torch.equal(found, labels)
    assert list(baselines()) == [LOGISTIC, "nearest centroid", "linear head"]
    for method in baselines(3).values():
        answers = method(maps, queries, list(range(E)))
        assert answers.shape == (E, B)
        assert (answers == method(support, queries, list(range(E)))).double().mean() > 0.99
    assert torch.equal(on_support(nearest_centroid)(support, queries, []), nearest_centroid(rows, labels, queries))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 4, 4, 4])}, r"every class from 0 on needs support"),
        ({"labels": torch.zeros(12, dtype=torch.long)}, r"at least two of them"),
        ({"labels": torch.arange(3)}, r"labels must be 12 integers"),
        ({"labels": torch.rand(12)}, r"labels must be 12 integers"),
        ({"labels": -torch.arange(12)}, r"every class from 0 on"),
        ({"queries": torch.rand(E, B, D + 1)}, r"expected rows \(E, R, D\) and queries \(E, B, D\)"),
        ({"queries": torch.full((E, B, D), torch.nan)}, r"features must be finite"),
        ({"weights": torch.zeros(12)}, r"weights must be 12 numbers > 0"),
        ({"weights": torch.ones(3)}, r"weights must be 12 numbers > 0"),
    ],
)
def test_wrong_rows_are_one_sentence(episodes, changes, message):
    rows, labels, queries = episodes
    for classify in (logistic_regression, nearest_centroid):
        given = {"rows": rows, "labels": labels, "queries": queries, **changes}
        with pytest.raises(ValueError, match=message):
            classify(**given)


def test_wrong_settings_of_the_head_are_one_sentence(episodes):
    for wrong in ({"learning_rate": 0.0}, {"epochs": -1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"expected learning_rate > 0, epochs >= 0 and batch_size >= 1"):
            linear_head(*episodes, list(range(E)), **wrong)
