"""Episodes: who is in them, that more of them keep the first, and what the protocol counts."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from weathered.fewshot.episodes import draw_episodes, pooled, run_episodes

LABELS = torch.tensor([9, 2, 5, 2, 9, 5, 7, 7, 0, 0] * 8)


def draw(episodes=40, ways=3, shots=2, queries=4, labels=LABELS, seed=0):
    return draw_episodes(labels, ways, shots, queries, episodes, torch.Generator().manual_seed(seed))


def test_rows_are_distinct_and_of_the_episodes_classes():
    drawn = draw(300)
    assert drawn.support.shape == (300, 3, 2)
    assert drawn.queries.shape == (300, 3, 4)
    rows = torch.cat([drawn.support, drawn.queries], 2)
    assert torch.equal(LABELS[rows], drawn.classes[..., None].expand(-1, -1, 6))
    assert all(len(set(episode.flatten().tolist())) == 18 for episode in rows)
    assert all(len(set(classes.tolist())) == 3 for classes in drawn.classes)


def test_classes_and_rows_are_drawn_alike():
    """Each of 5 classes is in 3 / 5 of the episodes, each of 16 rows of a class in 6 / 16 of those; 4.5 deviations."""
    drawn = draw(3000)
    share = drawn.classes.flatten().bincount(minlength=10)[[0, 2, 5, 7, 9]] / 3000
    assert ((share - 0.6).abs() < 4.5 * math.sqrt(0.24 / 3000)).all()
    rows = torch.cat([drawn.support, drawn.queries], 2).flatten().bincount(minlength=80) / 3000
    assert ((rows - 0.225).abs() < 4.5 * math.sqrt(0.225 * 0.775 / 3000)).all()


def test_every_place_of_an_episode_is_drawn_alike():
    """The first class is no more often a small number than the last, which a sort would make it."""
    first, last = draw(2000).classes[:, 0].double(), draw(2000).classes[:, -1].double()
    assert abs(float((first - last).mean())) < 4.5 * float((first - last).std()) / math.sqrt(2000)


def test_more_episodes_and_more_shots_keep_what_fewer_draw():
    few, many = draw(7), draw(600)
    assert torch.equal(few.support, many.support[:7])
    assert torch.equal(few.queries, many.queries[:7])
    five = draw(20, shots=5)
    assert torch.equal(draw(20, shots=1).support, five.support[:, :, :1])
    assert torch.equal(five.with_shots(1).support, five.support[:, :, :1])
    assert torch.equal(five.with_shots(1).queries, five.queries)
    assert not torch.equal(draw(7, seed=1).support, few.support)


def test_classes_of_unequal_size_are_drawn_from_all_their_rows():
    labels = torch.tensor([1] * 4 + [3] * 40)
    drawn = draw(200, ways=2, shots=1, queries=3, labels=labels)
    found = torch.cat([drawn.support, drawn.queries], 2)
    assert set(found[drawn.classes == 3].flatten().tolist()) == set(range(4, 44))
    assert set(found[drawn.classes == 1].flatten().tolist()) == set(range(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 6}, r"6-way episodes need at least 6 classes, got 5"),
        ({"shots": 13}, r"class 0 has 16 rows, but an episode takes 17 of a class: 13 as support and 4 as queries"),
        ({"ways": 1}, r"ways must be at least 2, got 1"),
        ({"shots": 0}, r"shots must be at least 1, got 0"),
        ({"queries": 0}, r"queries must be at least 1, got 0"),
        ({"episodes": 1}, r"episodes must be at least 2, got 1"),
        ({"labels": torch.tensor([0, -1])}, r"labels must be integers >= 0"),
        ({"labels": torch.rand(6)}, r"labels must be integers >= 0"),
        ({"labels": LABELS[:0]}, r"need at least 3 classes, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        draw(**changes)


def test_no_more_shots_than_were_drawn():
    with pytest.raises(ValueError, match=r"shots must be in \[1, 2\] for these episodes, got 3"):
        draw(4).with_shots(3)


def told(classes):
    """A method that reads the class off the first feature and finds it among the support; `classes` it cannot see."""

    def method(support, queries, numbers):
        own, asked = support[:, :, 0, 0], queries[:, :, 0]
        answer = (own[:, None] == asked[..., None]).long().argmax(2)
        return torch.where(torch.isin(asked, torch.tensor(classes)), -1, answer)

    return method


def fetch(rows):
    return LABELS[rows].float()[:, None].expand(-1, 3)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_labels_are_remapped_and_accuracy_is_the_share_of_queries(batch_size):
    drawn = draw(30)
    result = run_episodes({"sees": told([]), "blind to 7": told([7.0])}, fetch, drawn, batch_size)
    assert torch.equal(result.accuracies["sees"], torch.ones(30, dtype=torch.float64))
    expected = 1 - (drawn.classes == 7).double().mean(1)
    assert_close(result.accuracies["blind to 7"], expected)


def test_means_intervals_and_differences_are_students():
    drawn = draw(30)
    result = run_episodes({"a": told([7.0]), "b": told([7.0, 0.0])}, fetch, drawn)
    a, b = (result.accuracies[name].numpy() for name in "ab")
    estimate, difference = result.estimate("a"), result.difference("a", "b").difference
    for found, values in ((estimate, a), (difference, a - b)):
        low, high = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
        assert (found.value, found.low, found.high, found.n) == pytest.approx((values.mean(), low, high, 30))


def test_each_episode_keeps_its_number_whatever_the_batch():
    seen = []

    def method(support, queries, numbers):
        seen.extend(zip(numbers, support[:, 0, 0, 0].tolist(), strict=True))
        return torch.zeros(queries.shape[:2], dtype=torch.long)

    drawn = draw(9)
    run_episodes({"m": method}, fetch, drawn, 4)
    assert seen == [(n, float(drawn.classes[n, 0])) for n in range(9)]


def test_queries_reach_methods_pooled_and_supports_as_they_are():
    maps = torch.rand(80, 3, 2, 4)

    def method(support, queries, numbers):
        assert support.shape[1:] == (3, 2, 3, 2, 4)
        assert_close(queries, maps.mean((2, 3))[drawn.queries[numbers].flatten(1)])
        return torch.zeros(queries.shape[:2], dtype=torch.long)

    drawn = draw(5)
    run_episodes({"m": method}, lambda rows: maps[rows], drawn)


def test_pooling_is_linear_and_leaves_rows_alone():
    maps = torch.rand(6, 5, 8, 3, 4)
    assert_close(pooled(maps.mean(1), 1), pooled(maps, 2).mean(1), atol=1e-6, rtol=0)
    assert torch.equal(pooled(maps[..., 0, 0], 2), maps[..., 0, 0])


def test_wrong_answers_and_broken_features_are_errors():
    drawn = draw(4)
    with pytest.raises(ValueError, match=r"m must give labels of shape \(4, 12\), got \(4, 3\)"):
        run_episodes({"m": lambda support, queries, numbers: queries[:, 0].long()}, fetch, drawn)
    with pytest.raises(ValueError, match=r"features must be finite"):
        run_episodes({"m": told([])}, lambda rows: fetch(rows) * torch.nan, drawn)
    with pytest.raises(ValueError, match=r"features must be finite, \(n, D\) or \(n, c, h, w\), got"):
        run_episodes({"m": told([])}, lambda rows: fetch(rows)[..., None], drawn)
    with pytest.raises(ValueError, match=r"batch_size must be >= 1, got 0"):
        run_episodes({"m": told([])}, fetch, drawn, 0)


def test_who_watches_is_told_how_many_episodes_are_done():
    labels = torch.arange(3).repeat_interleave(12)
    drawn, seen = draw_episodes(labels, 3, 2, 3, 7, torch.Generator().manual_seed(0)), []
    features = torch.rand(36, 4, generator=torch.Generator().manual_seed(1))
    run_episodes(
        {"first": lambda support, queries, numbers: torch.zeros(queries.shape[:2], dtype=torch.int64)},
        lambda rows: features[rows],
        drawn,
        3,
        lambda what, done, of: seen.append((what, done, of)),
    )
    assert seen == [("episodes of 2 shots", done, 7) for done in (0, 3, 6)]
