"""Planted shortcuts: exact shares, cues where they belong and nothing else changed, groups, what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.core.errors import DataError, SpecError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.makers.shortcut import GROUPS, Shortcut, coloured, draw_cues, hues, in_halves
from weathered.data.prepare import prepare
from weathered.recipe import DataOptions, Recipe

HALVES = "shortcut:halves=true"


def images(size: int = 60, classes: int = 4, shape: tuple[int, int, int] = (1, 9, 10)) -> Dataset:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 255, (size, *shape), generator=rng, dtype=torch.uint8)
    return Dataset.of(pixels, torch.arange(size) % classes)


def pixels_of(data: Dataset) -> torch.Tensor:
    return data.inputs.fetch(torch.arange(len(data)))


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(2, 5))
def test_exactly_the_share_of_cues_follows(seed, agreement, classes):
    labels = torch.arange(50) % classes
    cues = draw_cues(labels, classes, agreement, generator(seed, "cues"))
    assert int((cues == labels).sum()) == int(agreement * 50 + 1e-9)
    assert 0 <= int(cues.min()) <= int(cues.max()) < classes


def test_other_cues_are_uniform():
    labels = torch.full((6000,), 2)
    counts = draw_cues(labels, 4, 0.0, generator(0, "cues")).bincount(minlength=4)
    # 2,000 each, standard deviation 37
    assert counts[2] == 0
    assert bool(((counts[[0, 1, 3]] - 2000).abs() < 200).all())


def test_a_patch_is_grey_by_class_and_nothing_else_changes():
    data = images()
    made = Shortcut(size=2, top=3, left=5)(data, generator(0, "maker"))
    x, before = pixels_of(made), pixels_of(data)
    values = torch.tensor([0, 85, 170, 255], dtype=torch.uint8)
    assert torch.equal(x[:, 0, 3:5, 5:7], values[data.labels][:, None, None].expand(-1, 2, 2))
    rest = torch.ones(9, 10, dtype=torch.bool)
    rest[3:5, 5:7] = False
    assert torch.equal(x[..., rest], before[..., rest])
    assert torch.equal(pixels_of(data), before)
    assert made.extra["group"].tolist() == [0] * 60
    assert made.group_names == GROUPS
    assert "follows the label in 60 of 60 images" in made.notes[-1]


def test_a_white_patch_lies_elsewhere_for_each_class():
    data = images(classes=4)
    made = Shortcut(size=3, top=1, left=2, code="place", agreement=0.5)(data, generator(0, "maker"))
    x, cues = pixels_of(made), made.extra["cue"]
    for cue, (row, column) in enumerate([(1, 2), (1, 5), (4, 2), (4, 5)]):
        block = x[:, 0, row : row + 3, column : column + 3].flatten(1)
        assert torch.equal((block == 255).all(1), cues == cue)
    assert torch.equal(made.extra["group"], (cues != data.labels).long())
    assert int(made.extra["group"].sum()) == 30


def test_a_colour_is_that_of_the_cue_and_keeps_the_brightness():
    data = images(classes=3)
    made = Shortcut("colour")(data, generator(0, "maker"))
    assert made.inputs.shape == (3, 9, 10)
    x, grey = pixels_of(made), pixels_of(data)[:, 0]
    for channel in range(3):
        assert torch.equal(x[:, channel], torch.where((data.labels == channel)[:, None, None], grey, 0))
    assert hues(2).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert len(hues(12).unique(dim=0)) == 12
    colourful = torch.tensor([[90, 0, 30]], dtype=torch.uint8)[:, :, None, None]
    assert coloured(colourful, torch.tensor([1]), hues(2)).flatten().tolist() == [0, 40, 0]


def test_rows_keep_their_cue_when_they_are_selected():
    made = Shortcut(agreement=0.5)(images(), generator(0, "maker"))
    rows = torch.tensor([41, 3, 17])
    part = made.select(rows)
    assert torch.equal(pixels_of(part), pixels_of(made)[rows])
    assert torch.equal(part.extra["group"], made.extra["group"][rows])


def test_the_test_set_has_cues_by_chance_or_as_asked():
    data = images(400)
    by_chance = Shortcut().test_set(data, generator(0, "test"))
    assert int((by_chance.extra["group"] == 0).sum()) == 100
    reverse = Shortcut(test_agreement=0.0).test_set(data, generator(0, "test"))
    assert bool((reverse.extra["cue"] != data.labels).all())


def test_halves_relabel_all_that_is_known():
    data = images(classes=5).replace(class_names=tuple("abcde"), clean_labels=(torch.arange(60) + 1) % 5)
    truth = data.clean_labels.clone()
    truth[0] = -1
    halved = in_halves(data.replace(clean_labels=truth))
    assert halved.class_names == ("a to c", "d to e")
    assert torch.equal(halved.labels, (data.labels >= 3).long())
    assert halved.clean_labels is not None
    assert halved.clean_labels[0] == -1
    assert torch.equal(halved.clean_labels[1:], (truth[1:] >= 3).long())
    made = Shortcut(halves=True, size=2)(data, generator(0, "maker"))
    x = pixels_of(made)[:, 0, :2, :2].flatten(1)
    assert torch.equal(x, 255 * made.labels[:, None].expand(-1, 4).to(torch.uint8))


def test_in_a_recipe_the_cue_follows_in_training_and_validation_and_not_in_the_test():
    splits = prepare(Recipe(data=DataOptions(make=(HALVES,), validation=0.2)))
    assert splits.validation is not None
    for part in (splits.train, splits.validation):
        corner = pixels_of(part)[:, 0, :3, :3].flatten(1)
        assert torch.equal(corner, 255 * part.labels[:, None].expand(-1, 9).to(torch.uint8))
    corner = (pixels_of(splits.test)[:, 0, 0, 0] == 255).long()
    assert torch.equal((corner != splits.test.labels).long(), splits.test.extra["group"])
    assert splits.test.group_counts.tolist() == [225, 225]
    assert splits.test.class_names == splits.train.class_names == ("0 to 4", "5 to 9")
    again = prepare(Recipe(data=DataOptions(make=(HALVES,), validation=0.2)))
    assert torch.equal(pixels_of(again.test), pixels_of(splits.test))


def test_cues_follow_labels_as_given_wrong_ones_too():
    train = prepare(Recipe(data=DataOptions(make=("symmetric:rate=0.4", "shortcut:size=2")))).train
    assert torch.equal(train.extra["cue"], train.labels)
    assert train.clean_labels is not None
    assert not torch.equal(train.extra["cue"], train.clean_labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("shortcut:kind=frame", "takes one of 'patch', 'colour', got 'frame'"),
        ("shortcut:agreement=1.5", r"agreement must be in \[0, 1\], got 1.5"),
        ("shortcut:test_agreement=-1.0", r"test_agreement must be in \[0, 1\], got -1.0"),
        ("shortcut:size=0", "size must be at least 1"),
        ("shortcut:left=-2", "top and left at least 0"),
        ("shortcut:size=9", "9 x 9 pixels at row 0, column 0 does not fit"),
        ("shortcut:top=6", "row 6, column 0 does not fit"),
        ("shortcut:code=place", "does not fit images of shape .* take a smaller size"),
        ("shortcut:agrement=1.0", "Did you mean 'agreement'?"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(make, message):
    with pytest.raises((SpecError, DataError), match=message):
        prepare(Recipe(data=DataOptions(make=(make,))))


def test_tables_groups_and_single_classes_are_refused():
    rng = generator(0, "maker")
    with pytest.raises(DataError, match="a shortcut needs images"):
        Shortcut()(Dataset.of(torch.rand(6, 4), torch.arange(6) % 2), rng)
    with pytest.raises(DataError, match="have groups already"):
        Shortcut()(images().replace(extra={"group": torch.zeros(60).long()}), rng)
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        Shortcut()(images(classes=1), rng)
    with pytest.raises(SpecError, match="shortcut changes the test set, which tfh takes episodes from. Drop one."):
        prepare(Recipe(data=DataOptions(make=("shortcut:size=2",), base_classes=5), use=("tfh",)))
