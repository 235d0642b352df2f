"""Base and novel classes: nothing of a novel class is trained on, whatever its label says."""

import pytest
import torch

from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.data.dataset import Dataset
from weathered.data.prepare import prepare
from weathered.data.sources import load
from weathered.fewshot.episodes import EpisodeOptions
from weathered.fewshot.split import class_split, few_shot_split
from weathered.recipe import DataOptions, Recipe

OPTIONS = EpisodeOptions(ways=3, shots=(1, 2), queries=4, base_classes=6)


def rows(labels, clean=None, name="data") -> Dataset:
    """Images whose first pixel is their row number."""
    labels = torch.as_tensor(labels)
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    names = tuple("abcdefghij")
    return Dataset.of(images, labels, names, name=name, clean_labels=None if clean is None else torch.as_tensor(clean))


def numbers(data: Dataset) -> list[int]:
    return data.inputs.fetch(torch.arange(len(data)))[:, 0, 0, 0].tolist()


def test_every_row_is_on_one_side_and_classes_keep_their_names():
    train, test = rows(torch.arange(100) % 10), rows(torch.arange(50) % 10)
    split = few_shot_split(train, test, OPTIONS, 0, "tfh")
    base, novel = class_split(10, OPTIONS, 0)
    assert sorted([*base.tolist(), *novel.tolist()]) == list(range(10))
    assert (split.train.num_classes, split.test.num_classes, split.novel[0].num_classes) == (6, 6, 4)
    parts = ((train, split.train, base), (test, split.test, base), (train, split.novel[0], novel))
    for whole, part, wanted in (*parts, (test, split.novel[1], novel)):
        found = numbers(part)
        assert found == [row for row in range(len(whole)) if int(whole.labels[row]) in wanted.tolist()]
        assert [part.class_names[label] for label in part.labels] == [whole.class_names[whole.labels[r]] for r in found]
    assert "6 of 10 classes are trained on; all 60 rows of the 4 others" in split.train.notes[-1]


def test_the_seed_of_the_data_chooses_the_classes():
    chosen = [tuple(class_split(10, OPTIONS, seed)[0].tolist()) for seed in range(20)]
    assert len(set(chosen)) > 10
    assert chosen[0] == tuple(class_split(10, OPTIONS, 0)[0].tolist())
    assert len(class_split(10, OPTIONS._replace(base_classes=None), 0)[0]) == 5


def test_a_row_whose_truth_is_novel_is_never_trained_on():
    """Every row of class c is given the label c + 1: the truth decides, and rows that cannot be placed are left out."""
    clean = torch.arange(100) % 10
    split = few_shot_split(rows((clean + 1) % 10, clean), rows(clean), OPTIONS, 0, "tfh")
    base, novel = (set(classes.tolist()) for classes in class_split(10, OPTIONS, 0))
    trained = numbers(split.train)
    assert trained
    assert {row % 10 for row in trained} <= base
    assert {(row + 1) % 10 for row in trained} <= base
    assert {row % 10 for row in numbers(split.novel[0])} == novel
    assert len(split.novel[0]) == 40
    assert split.novel[0].clean_labels is None
    left = 100 - len(trained) - 40
    assert f"{left} rows whose given and true label" in split.train.notes[-1]
    truth = split.train.clean_labels
    assert [split.train.class_names[c] for c in truth] == ["abcdefghij"[row % 10] for row in trained]


def test_an_image_of_no_class_stays_under_its_base_label():
    clean = torch.arange(100) % 10
    clean[:50] = -1
    split = few_shot_split(rows(torch.arange(100) % 10, clean), rows(torch.arange(50) % 10), OPTIONS, 0, "tfh")
    assert split.train.clean_labels is not None
    assert int((split.train.clean_labels == -1).sum()) == 30
    assert len(split.novel[0]) == 20


@pytest.mark.parametrize("make", [("symmetric:rate=0.4",), ("long-tail:imbalance=5", "symmetric:rate=0.3")])
def test_makers_work_on_base_classes_only(make):
    data = DataOptions(train="digits", base_classes=5, make=make, validation=0.2)
    labels = load("digits").labels.tolist()
    splits = prepare(Recipe(data=data, use=("tfh",)))
    novel = {name for part in splits.novel for name in part.class_names}
    assert len(novel) == 5
    trained = torch.cat([splits.train.rows_in_source, splits.validation.rows_in_source])
    true_names = {str(labels[row]) for row in trained.tolist()}
    assert true_names == set(splits.train.class_names)
    assert not true_names & novel
    assert bool((splits.train.labels != splits.train.clean_labels).any())
    assert sum(map(len, splits.novel)) == sum(str(label) in novel for label in labels)
    assert {int(label) for label in splits.test.labels} == set(range(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 5}, r"5-way episodes of 10 classes need base_classes in \[2, 5\], got 6"),
        ({"base_classes": 1}, r"need base_classes in \[2, 7\], got 1"),
        ({"base_classes": 10}, r"got 10; change --base-classes or --ways"),
        ({"ways": 9}, r"9-way episodes need 9 novel and 2 base classes, but there are 10 classes in all"),
    ],
)
def test_too_few_classes_are_one_sentence(changes, message):
    data = rows(torch.arange(100) % 10)
    with pytest.raises(SpecError, match=message):
        few_shot_split(data, data, OPTIONS._replace(**changes), 0, "tfh")


def test_too_few_rows_name_the_class():
    data = rows(torch.arange(30) % 10)
    few = OPTIONS._replace(queries=9)
    message = (
        r"takes 11 rows of a novel class, 2 as support and 9 as queries, but class '[a-j]' has 6, and 3 more have "
        r"fewer than 11; lower --queries or --shots"
    )
    with pytest.raises(DataError, match=message):
        few_shot_split(data, data, few, 0, "tfh")
    few_shot_split(data, data, few._replace(queries=4), 0, "tfh")


def test_pixels_are_refused():
    shapes = load("shapes:20")
    with pytest.raises(Incompatible, match=r"tfh works on one label for each sample, but these data have one for each"):
        few_shot_split(shapes, shapes, OPTIONS, 0, "tfh")


def test_corrections_are_refused():
    data = DataOptions(train="digits", make=("corrections:file=none.csv",))
    with pytest.raises(SpecError, match=r"corrections name rows and classes of all data, of which tfh trains on some"):
        prepare(Recipe(data=data, use=("tfh",)))
