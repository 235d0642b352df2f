"""Splits and pairs: stratified, fixed by their seed, the same classes on both sides."""

import numpy as np
import pytest
import torch
from data_files import colour, encode, grey, write_folder, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data import load, load_pair, validation_split
from weathered.data.splits import random_subset, stratified_split


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=8, max_size=100),
    fraction=st.sampled_from([0.1, 0.25, 0.5, 0.9]),
    seed=st.integers(0, 3),
)
def test_each_class_gives_its_share(labels, fraction, seed):
    labels = torch.tensor(labels)
    kept, held = stratified_split(labels, fraction, generator(seed, "split"))
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(held, held.sort().values)
    for label in labels.unique():
        count, out = int((labels == label).sum()), int((labels[held] == label).sum())
        if count > 1:
            assert abs(out - fraction * count) <= 1
            assert 0 < out < count
        else:
            assert out == 0


def test_a_class_of_one_row_stays_in_training_and_is_named(tmp_path):
    rows = [f"{i},{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "x.csv").write_text("\n".join(["size,label", *rows, "20,rare"]))
    for fraction in (0.25, 0.5, 0.75):
        train, test = load_pair(str(tmp_path / "x.csv"), test_fraction=fraction)
        assert int(train.class_counts[2]) == 1
        assert int(test.class_counts[2]) == 0
        (note,) = train.notes
        assert note.startswith("The test set holds no row of the class 'rare': a single row is kept for training")
        assert "--test" in note
    train, validation = validation_split(load(str(tmp_path / "x.csv")), 0.25, 0)
    assert int(train.class_counts[2]) == 1
    assert int(validation.class_counts[2]) == 0
    assert "The validation set holds no row of the class 'rare'" in train.notes[-1]
    (tmp_path / "x.csv").write_text("\n".join(["size,label", *rows, "20,rare", "21,rare"]))
    assert load_pair(str(tmp_path / "x.csv"))[0].notes == ()


def test_classes_that_a_limit_or_a_test_set_leaves_empty_are_named(tmp_path):
    rows = [f"{i},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "x.csv").write_text("\n".join(["size,label", *rows, "40,c", "41,c"]))
    (tmp_path / "test.csv").write_text("size,label\n1,a\n2,c\n")
    train, _ = load_pair(str(tmp_path / "x.csv"), str(tmp_path / "test.csv"), limit=2, seed=1)
    absent = [name for name in "abc" if int(train.class_counts["abc".index(name)]) == 0]
    assert absent
    assert any(note.startswith("The training set holds no row of") and f"'{absent[0]}'" in note for note in train.notes)
    assert "The test set holds no row of the class 'b'." in train.notes


def test_random_subset_is_uniform_over_rows():
    hits = torch.zeros(20)
    for seed in range(400):
        rows = random_subset(20, 5, seed)
        assert len(rows.unique()) == 5
        hits[rows] += 1
    # 100 expected for each, standard deviation about 8.7
    assert (hits - 100).abs().max() < 40


def test_digits_have_a_fixed_stratified_test_split():
    train, test = load_pair("digits")
    assert (len(train), len(test)) == (1347, 450)
    shares = test.class_counts / load("digits").class_counts
    assert (shares - 0.25).abs().max() < 0.01
    again = load_pair("digits")[1]
    assert torch.equal(again.inputs.fetch(torch.arange(450)), test.inputs.fetch(torch.arange(450)))
    other = load_pair("digits", seed=1)[1]
    assert not torch.equal(other.inputs.fetch(torch.arange(450)), test.inputs.fetch(torch.arange(450)))
    both = torch.cat([d.inputs.fetch(torch.arange(len(d))).flatten(1) for d in (train, test)])
    whole = load("digits").inputs.fetch(torch.arange(1797)).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.tolist()))


def test_the_limit_does_not_touch_the_test_set():
    full, limited = load_pair("digits"), load_pair("digits", limit=300)
    assert len(limited[0]) == 300
    assert torch.equal(limited[1].labels, full[1].labels)
    assert len(load_pair("digits", limit=10_000)[0]) == 1347


def test_validation_split_is_stratified_and_disjoint():
    data = load("digits")
    data = data.replace(extra={"row": torch.arange(1797)})
    train, validation = validation_split(data, 0.1, seed=0)
    assert len(train) + len(validation) == 1797
    assert not set(train.extra["row"].tolist()) & set(validation.extra["row"].tolist())
    assert (validation.class_counts / data.class_counts - 0.1).abs().max() < 0.01
    assert not torch.equal(validation.extra["row"], validation_split(data, 0.1, seed=1)[1].extra["row"])
    with pytest.raises(ValueError, match=r"must be in \(0, 1\), got 0"):
        validation_split(data, 0, seed=0)


def test_test_labels_are_the_truth_where_the_test_set_has_it(tmp_path):
    images = [encode(colour(i)) for i in range(6)]
    truth, noisy = [0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 0, 1]
    train = write_parquet(tmp_path / "train.parquet", images, {"label": truth, "noisy": noisy})
    test = write_parquet(tmp_path / "test.parquet", images, {"label": truth, "noisy": noisy})
    bare = write_parquet(tmp_path / "bare.parquet", images, {"label": truth})

    def labels_of(test_spec, **options):
        pair = load_pair(str(train), str(test_spec), label_column="noisy", **options)
        assert pair[0].labels.tolist() == noisy
        return pair[1].labels.tolist()

    assert labels_of(test) == noisy
    assert labels_of(test, clean_column="label") == truth
    assert labels_of(test, clean_column="label", test_label_column="noisy") == noisy
    assert labels_of(bare) == truth


def test_a_split_of_one_source_keeps_the_truth_on_both_sides(tmp_path):
    images = [encode(colour(i)) for i in range(20)]
    columns = {"label": [i % 2 for i in range(20)], "noisy": [i // 10 for i in range(20)]}
    path = write_parquet(tmp_path / "x.parquet", images, columns)
    train, test = load_pair(str(path), label_column="noisy", clean_column="label", test_fraction=0.5)
    for part in (train, test):
        assert part.clean_labels is not None
        pixels = {tuple(colour(i).transpose(2, 0, 1).ravel()): i for i in range(20)}
        rows = [pixels[tuple(x.flatten().tolist())] for x in part.inputs.fetch(torch.arange(len(part)))]
        assert part.clean_labels.tolist() == [r % 2 for r in rows]
        assert part.labels.tolist() == [r // 10 for r in rows]


def test_classes_that_differ_are_named(tmp_path):
    write_folder(tmp_path / "train", ["ant", "bee", "cow"])
    write_folder(tmp_path / "test", ["ant", "bee", "dog"])
    with pytest.raises(DataError, match=r"only here: dog; only in the training set: cow"):
        load_pair(str(tmp_path / "train"), str(tmp_path / "test"))
    (tmp_path / "test.csv").write_text("path,label\ntest/ant/0.png,ant\ntest/dog/0.png,dog\n")
    with pytest.raises(
        DataError, match=r"label 'dog' in column 'label', row 1, is none of the 3 classes: ant, bee, cow"
    ):
        load_pair(str(tmp_path / "train"), str(tmp_path / "test.csv"))


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    images = [encode(colour(i)) for i in range(4)]
    train = write_parquet(tmp_path / "a.parquet", images, {"label": [0, 1, 0, 1]}, {"label": ("cat", "dog")})
    test = write_parquet(tmp_path / "b.parquet", images, {"label": [0, 1, 1, 1]}, {"label": ("dog", "cat")})
    pair = load_pair(str(train), str(test))
    assert pair[1].class_names == ("cat", "dog")
    assert pair[1].labels.tolist() == [1, 0, 0, 0]


def test_whole_numbers_of_a_test_set_are_positions_in_the_training_names(tmp_path):
    images = [encode(colour(i)) for i in range(4)]
    train = write_parquet(tmp_path / "a.parquet", images, {"label": [0, 1, 0, 1]}, {"label": ("cat", "dog")})
    np.savez(tmp_path / "b.npz", x=np.stack([colour(i) for i in range(4)]), y=[1, 1, 0, 1])
    assert load_pair(str(train), str(tmp_path / "b.npz"))[1].labels.tolist() == [1, 1, 0, 1]


def test_grey_test_images_follow_training_images_in_colour_and_the_reverse(tmp_path):
    write_folder(tmp_path / "colour", ["a", "b"])
    write_folder(tmp_path / "grey", ["a", "b"], make=grey)
    for first, second in (("colour", "grey"), ("grey", "colour")):
        train, test = load_pair(str(tmp_path / first), str(tmp_path / second))
        assert train.inputs.shape == test.inputs.shape == (3, 6, 6)
        shown = {first: train, second: test}["grey"].inputs.fetch(torch.tensor([0]))
        assert torch.equal(shown[0], torch.from_numpy(grey(0)).expand(3, 6, 6))


def test_shapes_that_differ_are_refused(tmp_path):
    write_folder(tmp_path / "train", ["a", "b"])
    write_folder(tmp_path / "test", ["a", "b"], make=lambda seed: colour(seed, 8, 8))
    with pytest.raises(DataError, match=r"\(3, 6, 6\), the test inputs \(3, 8, 8\); pass --image-size"):
        load_pair(str(tmp_path / "train"), str(tmp_path / "test"))


def test_tables_are_matched_by_column(tmp_path):
    (tmp_path / "train.csv").write_text("a,b,noisy,label\n1,2,x,x\n3,4,y,y\n5,6,x,y\n")
    (tmp_path / "test.csv").write_text("b,label,a,noisy\n8,y,7,x\n")
    train, test = load_pair(
        str(tmp_path / "train.csv"), str(tmp_path / "test.csv"), label_column="noisy", clean_column="label"
    )
    assert train.inputs.fetch(torch.arange(3)).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert test.inputs.fetch(torch.arange(1)).tolist() == [[7, 8]]
    assert test.labels.tolist() == [1]
    (tmp_path / "other.csv").write_text("b,label,c\n8,y,7\n")
    with pytest.raises(DataError, match="only the training set has the feature 'a'"):
        load_pair(str(tmp_path / "train.csv"), str(tmp_path / "other.csv"), label_column="noisy", clean_column="label")


def test_a_label_column_cannot_slip_in_as_a_feature(tmp_path):
    (tmp_path / "x.csv").write_text("a,noisy,label\n1,0,0\n3,1,1\n5,0,1\n")
    with pytest.raises(DataError, match="'label' would become a feature and give the answer away"):
        load(str(tmp_path / "x.csv"), label_column="noisy")


def test_training_needs_two_classes_and_rows_of_each(tmp_path):
    write_folder(tmp_path / "one", ["a"])
    with pytest.raises(DataError, match="at least two classes"):
        load_pair(str(tmp_path / "one"))
    images = [encode(colour(i)) for i in range(4)]
    path = write_parquet(tmp_path / "x.parquet", images, {"label": [0, 1, 0, 1]}, {"label": ("cat", "dog", "cow")})
    with pytest.raises(DataError, match="the class 'cow' has no row"):
        load_pair(str(path), str(path))
    assert load(str(path)).class_counts.tolist() == [2, 2, 0]
