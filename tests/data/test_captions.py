"""Captions that are generated, and those in a column of a csv file."""

import pytest
import torch
from PIL import Image

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.sources import load, load_pair
from weathered.data.sources.captions import COLOURS, COLUMNS, ROWS, SHAPES, SIZES


def texts_of(dataset):
    return [" ".join(dataset.words[i - 2] for i in row if i > 1) for row in dataset.extra["caption"].tolist()]


def test_each_combination_occurs_once_and_the_image_shows_what_the_caption_says():
    data = load("captions")
    texts = texts_of(data)
    assert len(set(texts)) == len(texts) == 432
    pixels = data.floats(torch.arange(432))
    for row, text in enumerate(texts[:100]):
        size, colour, shape, line, column = text.split()
        assert (size in SIZES, line in ROWS, column in COLUMNS) == (True, True, True)
        assert data.class_names[int(data.labels[row])] == shape
        patch = pixels[row, :, round(ROWS[line]) - 1 : round(ROWS[line]) + 2, round(COLUMNS[column]) :][:, :, :2]
        nearest = min(COLOURS, key=lambda name: float((patch.mean((1, 2)) - torch.tensor(COLOURS[name])).norm()))
        assert nearest == colour
    assert set(data.class_names) == set(SHAPES)


def test_large_objects_cover_more_than_small_ones():
    data = load("captions")
    far = (data.floats(torch.arange(432)) - 0.5).abs().amax(1) > 0.38
    small = torch.tensor(["small" in text for text in texts_of(data)])
    assert float(far[~small].float().mean()) > 1.4 * float(far[small].float().mean())


def test_the_number_says_how_many_and_the_same_number_gives_the_same():
    assert len(load("captions:500")) == 500
    assert len(set(texts_of(load("captions:500")))) == 432
    first, again = load("captions:20"), load("captions:20")
    assert torch.equal(first.inputs.fetch(torch.arange(20)), again.inputs.fetch(torch.arange(20)))
    for wrong in ("x", "1", "0", "100001"):
        with pytest.raises(DataError, match=r"a number of images in \[2, 100000\]"):
            load(f"captions:{wrong}")
    with pytest.raises(DataError, match="captions data have no columns"):
        load("captions:20", caption_column="text")


@pytest.fixture
def table(tmp_path):
    def write(lines, name="pairs.csv"):
        for number in range(len(lines)):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        rows = [f"{number}.png,{line}" for number, line in enumerate(lines)]
        (tmp_path / name).write_text("\n".join(["image,text,split", *rows]) + "\n")
        return str(tmp_path / name)

    return write


def test_captions_of_a_csv_file_need_no_labels(table):
    path = table(['"A red dog, asleep",train', "a cat,train", "two dogs,train", "a Dog,train"])
    data = load(path, caption_column="text")
    assert texts_of(data) == ["a red dog asleep", "a cat", "two dogs", "a dog"]
    assert data.words == ("a", "asleep", "cat", "dog", "dogs", "red", "two")
    assert data.class_names == ("image",)
    assert "caption" in data.facts
    with pytest.raises(DataError, match="no column 'label'"):
        load(path)


def test_a_test_set_takes_the_words_of_the_training_set(table):
    path = table(["a dog,train", "a cat,train", "a bird,test", "a dog,test"])
    train, test = load_pair(path, caption_column="text", rows="split=train", test_rows="split=test")
    assert train.words == test.words == ("a", "cat", "dog")
    assert test.extra["caption"].tolist() == [[2, 1], [2, 4]]


def test_labels_beside_captions_are_kept(tmp_path, table):
    table(["a,b"] * 3)
    (tmp_path / "both.csv").write_text("image,text,label\n0.png,a dog,x\n1.png,a cat,y\n2.png,a fox,y\n")
    data = load(str(tmp_path / "both.csv"), caption_column="text")
    assert data.labels.tolist() == [0, 1, 1]


def test_missing_captions_and_columns_are_named(table, tmp_path):
    path = table(["a dog,train", " !,train", "a cat,train"])
    with pytest.raises(DataError, match=r"pairs\.csv: the caption in column 'text' has no word in row 1"):
        load(path, caption_column="text")
    with pytest.raises(DataError, match="Where images have captions in place of labels, pass --caption-column"):
        load(path)
    with pytest.raises(DataError, match="no such column 'txt'.*Did you mean"):
        load(path, caption_column="txt")
    (tmp_path / "table.csv").write_text("a,text,label\n1,x y,0\n2,z,1\n")
    with pytest.raises(DataError, match="captions belong to images"):
        load(str(tmp_path / "table.csv"), caption_column="text")


def test_images_left_out_of_either_part_are_counted(table, tmp_path):
    path = table([f"a dog {i},train" for i in range(8)])
    _, whole = load_pair(path, caption_column="text")
    first = int(whole.rows_in_source[0])
    (tmp_path / f"{first}.png").unlink()
    train, test = load_pair(path, caption_column="text", skip_bad=True)
    assert len(test) == len(whole) - 1
    assert any(f"Of the test set: 1 images could not be read and were dropped, the first: {tmp_path}" in note
               for note in train.notes)  # fmt: skip


def test_word_ids_outside_the_vocabulary_are_refused():
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    Dataset.of(images, labels, extra={"caption": torch.tensor([[2], [0]])}, words=("a",))
    with pytest.raises(DataError, match=r"word ids must be in \[0, 2\], got 0 to 3"):
        Dataset.of(images, labels, extra={"caption": torch.tensor([[3], [0]])}, words=("a",))
    with pytest.raises(DataError, match=r"captions must be \(N, L\) int64"):
        Dataset.of(images, labels, extra={"caption": torch.tensor([2, 0])}, words=("a",))
