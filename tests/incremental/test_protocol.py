"""The class-incremental protocol: who sees what, and what is counted."""

import pytest
import torch

from weathered.incremental.protocol import class_phases, run_incremental


class Recorder:
    """Predicts the class whose number stands in column 0, if its rows were ever given; else class `fallback`."""

    def __init__(self, forgets: bool = False, fallback: int = 0):
        self.calls: list[torch.Tensor] = []
        self.known: set[int] = set()
        self.forgets, self.fallback = forgets, fallback

    def partial_fit(self, features, labels):
        self.calls.append(labels)
        if self.forgets:
            self.known = set()
        self.known |= set(labels.tolist())
        return self

    def predict(self, features):
        named = features[:, 0].long()
        known = torch.isin(named, torch.tensor(sorted(self.known)))
        return torch.nn.functional.one_hot(torch.where(known, named, self.fallback), 10).double()


def rows(per_class: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return labels[:, None].double(), labels


@pytest.mark.parametrize(("classes", "base", "phases"), [(10, 0, 5), (100, 50, 25), (10, 10, 0), (7, 1, 6), (3, 0, 1)])
def test_class_phases_are_a_partition(classes, base, phases):
    groups = class_phases(classes, base, phases, seed=0)
    assert len(groups) == phases + (base > 0)
    assert sorted(label for group in groups for label in group) == list(range(classes))
    later = groups[1:] if base else groups
    assert len({len(group) for group in later}) <= 1
    if base:
        assert len(groups[0]) == base
    assert groups == class_phases(classes, base, phases, seed=0)
    if classes > 5:
        assert groups != class_phases(classes, base, phases, seed=1)


def test_class_phases_keep_a_given_order():
    assert class_phases(6, 2, 2, order=[5, 4, 3, 2, 1, 0]) == [(5, 4), (3, 2), (1, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 3, 0), "evenly"),
        ((10, 10, 2, 0), "evenly"),
        ((10, 5, 0, 0), "evenly"),
        ((10, 11, 1, 0), "base"),
        ((0, 0, 1, 0), "num_classes"),
        ((10, 0, 5), "either seed or order"),
        ((4, 0, 2, 0, [0, 1, 2, 3]), "either seed or order"),
        ((4, 0, 2, None, [0, 1, 2, 2]), "exactly once"),
    ],
)
def test_class_phases_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        class_phases(*arguments)


def test_each_phase_is_scored_on_all_classes_so_far_and_weighted_by_rows():
    """A learner that knows only its last phase, and calls all else class 9: accuracy = share of that phase's rows."""
    test_sizes = [10, 30, 20, 40]
    result = run_incremental(
        Recorder(forgets=True, fallback=9), [[0, 1], [2], [3]], rows([5, 5, 5, 5]), rows(test_sizes)
    )
    assert [a.value for a in result.accuracies] == [1.0, 20 / 60, 40 / 100]
    assert [a.n for a in result.accuracies] == [40, 60, 100]
    assert all(a.low <= a.value <= a.high for a in result.accuracies)
    assert result.last == 0.4
    assert result.average == pytest.approx((1 + 1 / 3 + 0.4) / 3)
    assert result.forgetting == 1.0
    lower = torch.tril(torch.ones(3, 3)).bool()
    assert torch.equal(result.by_group[lower], torch.eye(3, dtype=torch.float64)[lower])
    assert result.by_group[~lower].isnan().all()


def test_a_learner_that_keeps_all_has_no_forgetting():
    result = run_incremental(Recorder(), [[3], [0, 2], [1]], rows([4] * 4), rows([4] * 4))
    assert result.average == result.last == 1.0
    assert result.forgetting == 0.0
    assert run_incremental(Recorder(), [[0, 1]], rows([4, 4]), rows([4, 4])).forgetting == 0.0


def test_rows_reach_the_learner_once_in_order_and_by_batch():
    features, labels = rows([7, 8, 9])
    learner = Recorder()
    run_incremental(learner, [[2], [0, 1]], (features, labels), rows([1, 1, 1]), batch_size=4)
    assert [len(call) for call in learner.calls] == [4, 4, 1, 4, 4, 4, 3]
    assert torch.equal(torch.cat(learner.calls), torch.cat([labels[labels == 2], labels[labels != 2]]))


def test_a_function_may_give_the_rows_of_a_phase():
    features, labels = rows([7, 8, 9])
    asked = []

    def source(group):
        asked.append(group)
        keep = torch.isin(labels, torch.tensor(group))
        return features[keep], labels[keep]

    given = run_incremental(Recorder(True), [[2], [0, 1]], source, source)
    assert asked == [(2,), (2,), (0, 1), (0, 1)]
    whole = run_incremental(Recorder(True), [[2], [0, 1]], (features, labels), (features, labels))
    assert given.accuracies == whole.accuracies
    assert torch.equal(given.by_group.nan_to_num(-1), whole.by_group.nan_to_num(-1))


@pytest.mark.parametrize(
    ("phases", "train", "batch_size", "message"),
    [
        ([[0], [0, 1]], rows([3, 3]), None, "without a class in common"),
        ([[0], []], rows([3, 3]), None, "non-empty"),
        ([], rows([3, 3]), None, "non-empty"),
        ([[0], [1]], rows([3, 3]), 0, "batch_size"),
        ([[0], [1]], rows([3, 0]), None, "train must have rows"),
        ([[0], [1]], lambda group: rows([3, 3]), None, "of no other"),
    ],
)
def test_run_refuses(phases, train, batch_size, message):
    with pytest.raises(ValueError, match=message):
        run_incremental(Recorder(), phases, train, rows([3, 3]), batch_size)
