"""Masks from files: read as they are, in the rows of their images, and refused where they are no classes."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_files import colour, encode, write_parquet
from PIL import Image

from weathered.core.errors import DataError
from weathered.core.pixels import IGNORE
from weathered.data.sources import load, load_pair


def classes(seed, height=6, width=6, top=3):
    return np.random.default_rng(seed).integers(0, top, (height, width), dtype=np.uint8)


def palette_png(mask):
    image = Image.fromarray(mask, mode="L").convert("P")
    image.putdata(mask.ravel().tolist())
    image.putpalette([255, 0, 0] * 256)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def cells(data):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": item, "path": None} for item in data], type=kind)


@pytest.fixture
def file(tmp_path):
    """Six images with masks and a split; half of the masks have a palette, whose colours say nothing."""
    masks = [classes(i) for i in range(6)]
    data = [encode(mask) if i % 2 else palette_png(mask) for i, mask in enumerate(masks)]
    split = pa.array(["train", "test"] * 3)
    path = write_parquet(
        tmp_path / "seg.parquet", [encode(colour(i)) for i in range(6)], {"mask": cells(data), "split": split}, group=2
    )
    return path, torch.from_numpy(np.stack(masks))


def test_masks_come_in_the_rows_of_their_images(file):
    path, masks = file
    data = load(str(path), mask_column="mask")
    assert torch.equal(data.extra["mask"], masks)
    assert torch.equal(data.inputs.fetch(torch.tensor([3]))[0].movedim(0, -1), torch.from_numpy(colour(3)))
    assert data.class_counts.tolist() == [int((masks == c).sum()) for c in range(3)]


def test_rows_are_chosen_by_a_column(file):
    path, masks = file
    train, test = load_pair(str(path), mask_column="mask", rows="split=train", test_rows="split=test")
    assert torch.equal(train.extra["mask"], masks[::2])
    assert torch.equal(test.extra["mask"], masks[1::2])
    assert train.rows_in_source.tolist() == [0, 2, 4]
    assert "The 3 of 6 rows with split=train." in train.notes


def test_a_value_marks_pixels_without_a_class(file):
    path, masks = file
    data = load(str(path), mask_column="mask", ignore_label=2)
    assert data.num_classes == 2
    assert torch.equal(data.extra["mask"], masks.masked_fill(masks == 2, IGNORE))


def test_masks_are_resized_without_blending(tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[:, 6:] = 200
    path = write_parquet(tmp_path / "a.parquet", [encode(colour(0, 8, 12))], {"mask": cells([encode(mask)])})
    data = load(str(path), mask_column="mask", image_size=4)
    assert data.extra["mask"].unique().tolist() == [0, 200]
    assert torch.equal(data.extra["mask"][0, 0], torch.tensor([0, 0, 200, 200], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (encode(colour(1)), "a mask must be a grey or palette image"),
        (encode(classes(1, 5, 6)), "the mask is 5x6 pixels, its image 6x6"),
        (b"no image", "not an image|the image"),
        (encode(np.full((6, 6), 300, np.uint16)), r"must be in \[0, 255\], the mask holds 300"),
    ],
)
def test_masks_that_are_none(tmp_path, mask, message):
    path = write_parquet(
        tmp_path / "a.parquet", [encode(colour(0)), encode(colour(1))], {"mask": cells([encode(classes(0)), mask])}
    )
    with pytest.raises(DataError, match=message):
        load(str(path), mask_column="mask")


def test_names_of_columns_that_do_not_fit(file):
    path, _ = file
    with pytest.raises(DataError, match="no mask column 'masks'"):
        load(str(path), mask_column="masks")
    with pytest.raises(DataError, match="masks take the place of labels"):
        load(str(path), mask_column="mask", label_column="split")
    with pytest.raises(DataError, match="no row has split=val. It holds 'test', 'train'"):
        load(str(path), mask_column="mask", rows="split=val")
    with pytest.raises(DataError, match="as in split=train"):
        load(str(path), mask_column="mask", rows="split")


def test_arrays_of_masks(tmp_path):
    images, masks = np.stack([colour(i) for i in range(4)]), np.stack([classes(i) for i in range(4)])
    np.savez(tmp_path / "a.npz", images=images, masks=masks.astype(np.int64), class_names=np.array(["x", "y", "z"]))
    data = load(str(tmp_path / "a.npz"))
    assert data.is_segmentation
    assert data.class_names == ("x", "y", "z")
    assert torch.equal(data.extra["mask"], torch.from_numpy(masks))
    np.savez(tmp_path / "b.npz", images=images, masks=masks.astype(np.int64) * 200)
    with pytest.raises(DataError, match=r"whole numbers in \[0, 255\]"):
        load(str(tmp_path / "b.npz"))


def write_pairs(root, stems=("a", "b", "c")):
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, stem in enumerate(stems):
        (root / "images" / f"{stem}.jpg").write_bytes(encode(colour(i), "JPEG"))
        (root / "masks" / f"{stem}.png").write_bytes(encode(classes(i)))


def test_a_folder_of_images_and_masks(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("road\ncar\nsky\n")
    data = load(f"segmentation:{tmp_path}")
    assert data.class_names == ("road", "car", "sky")
    assert torch.equal(data.extra["mask"][1], torch.from_numpy(classes(1)))


def test_masks_without_an_image_are_noted(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "images" / "b.jpg").unlink()
    data = load(f"segmentation:{tmp_path}")
    assert len(data) == 2
    assert "Masks without an image were left out: 1 (b.png)." in data.notes


def test_names_of_classes_that_do_not_fit(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("road\ncar\nsky\n")
    mask = classes(1)
    mask[0, 0] = 7
    (tmp_path / "masks" / "b.png").write_bytes(encode(mask))
    with pytest.raises(DataError, match=r"masks/b\.png: the mask holds the class 7, .* --ignore-label 7"):
        load(f"segmentation:{tmp_path}")
    data = load(f"segmentation:{tmp_path}", ignore_label=7)
    assert int(data.extra["mask"][1, 0, 0]) == IGNORE
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(DataError, match="names no class"):
        load(f"segmentation:{tmp_path}")


def test_images_without_a_mask_that_can_be_read_are_left_out_where_asked(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "masks" / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b.png \(mask\)"):
        load(f"segmentation:{tmp_path}")
    data = load(f"segmentation:{tmp_path}", skip_bad=True)
    assert data.rows_in_source.tolist() == [0, 2]
    assert torch.equal(data.extra["mask"][1], torch.from_numpy(classes(2)))
    assert any(note.startswith("1 images could not be read") for note in data.notes)
    for name in "ac":
        (tmp_path / "masks" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 3 masks can be read"):
        load(f"segmentation:{tmp_path}", skip_bad=True)


@pytest.mark.parametrize("image_size", [None, 8])
def test_masks_of_another_size_than_their_image_are_refused_before_both_are_resized(tmp_path, image_size):
    write_pairs(tmp_path)
    height, width = classes(1).shape
    (tmp_path / "masks" / "b.png").write_bytes(encode(classes(1)[:, : width // 2]))
    with pytest.raises(DataError, match=rf"b.png \(mask\): the mask is {height}x{width // 2} pixels, its image"):
        load(f"segmentation:{tmp_path}", image_size=image_size)


def test_a_folder_of_images_and_masks_is_known_by_its_folders(tmp_path):
    write_pairs(tmp_path)
    assert load(str(tmp_path)).is_segmentation


def test_folders_that_do_not_fit(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.jpg: there is no mask 'b'"):
        load(f"segmentation:{tmp_path}")
    (tmp_path / "masks" / "b.png").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="the link leads out"):
        load(f"segmentation:{tmp_path}")
    with pytest.raises(DataError, match="there is no such folder"):
        load(f"segmentation:{tmp_path}/nowhere")


def test_generated_shapes_are_the_same_each_time_and_rare_ones_rare():
    data, again = load("shapes:60"), load("shapes:60")
    assert torch.equal(data.inputs.fetch(torch.arange(60)), again.inputs.fetch(torch.arange(60)))
    counts = load("shapes:1000").class_counts.double()
    assert float(counts[4:].sum() / counts.sum()) == pytest.approx(1 / 16 * 0.6, rel=0.5)
    for wrong in ("shapes:1", "shapes:many", "shapes:200000"):
        with pytest.raises(DataError, match="a number of images"):
            load(wrong)


def test_a_named_mask_column_wins_over_labels_in_the_file(tmp_path):
    images, masks = np.stack([colour(i) for i in range(4)]), np.stack([classes(i) for i in range(4)])
    np.savez(tmp_path / "a.npz", images=images, masks=masks, y=np.array([0, 1, 0, 1]))
    assert load(str(tmp_path / "a.npz"), mask_column="masks").is_segmentation
    assert not load(str(tmp_path / "a.npz")).is_segmentation
    with pytest.raises(DataError, match="masks take the place of labels"):
        load(str(tmp_path / "a.npz"), mask_column="masks", label_column="y")


def test_classes_of_a_test_set_must_be_those_of_training(tmp_path):
    for name, lines in (("a", "road\nsky\ncar\n"), ("b", "sky\ncar\nroad\n"), ("c", "road\n\nsky\ncar\n")):
        write_pairs(tmp_path / name)
        (tmp_path / name / "classes.txt").write_text(lines)
    with pytest.raises(DataError, match="the classes are sky, car, road, those of the training set road, sky, car"):
        load_pair(f"segmentation:{tmp_path}/a", f"segmentation:{tmp_path}/b")
    with pytest.raises(DataError, match="line 2 is empty"):
        load(f"segmentation:{tmp_path}/c")


def test_more_classes_than_masks_can_hold(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(256)))
    with pytest.raises(DataError, match="masks hold at most 255 classes"):
        load(f"segmentation:{tmp_path}")


def test_folders_and_names_that_are_links_out(tmp_path):
    write_pairs(tmp_path / "outside")
    inside = tmp_path / "inside"
    write_pairs(inside)
    (inside / "classes.txt").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="the link leads out"):
        load(f"segmentation:{inside}")
    (inside / "classes.txt").unlink()
    for stem in "abc":
        (inside / "masks" / f"{stem}.png").unlink()
    (inside / "masks").rmdir()
    (inside / "masks").symlink_to(tmp_path / "outside" / "masks")
    with pytest.raises(DataError, match="the link leads out"):
        load(f"segmentation:{inside}")


def short_png(mask, depth):
    """A grey PNG of 2 or 4 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    each = 8 // depth
    rows = b""
    for row in mask:
        padded = [*row.tolist(), *[0] * (-len(row) % each)]
        cells = [padded[i : i + each] for i in range(0, len(padded), each)]
        rows += b"\0" + bytes(sum(v << (8 - depth * (k + 1)) for k, v in enumerate(cell)) for cell in cells)
    head = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [2, 4])
def test_short_values_are_not_spread(tmp_path, depth):
    mask = classes(0, top=4)
    path = write_parquet(tmp_path / "a.parquet", [encode(colour(0))], {"mask": cells([short_png(mask, depth)])})
    assert torch.equal(load(str(path), mask_column="mask").extra["mask"][0], torch.from_numpy(mask))


def test_masks_that_lost_values_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [encode(colour(0))], {"mask": cells([encode(classes(0), "JPEG")])})
    with pytest.raises(DataError, match="JPEG files lose some; save it as PNG"):
        load(str(path), mask_column="mask")


def test_black_and_white_masks_are_explained(tmp_path):
    masks = [np.where(classes(i) > 0, 255, 0).astype(np.uint8) for i in range(4)]
    path = write_parquet(
        tmp_path / "a.parquet", [encode(colour(i)) for i in range(4)], {"mask": cells([encode(m) for m in masks])}
    )
    with pytest.raises(DataError, match="the value 255 marks pixels without one"):
        load_pair(str(path), mask_column="mask")


def test_images_in_memory_are_resized_with_their_masks():
    data = load("shapes:10", image_size=10)
    assert data.inputs.shape == (3, 10, 10)
    assert data.extra["mask"].shape == (10, 10, 10)
    small, whole = data.extra["mask"][0], load("shapes:10").extra["mask"][0]
    assert set(small.unique().tolist()) <= set(whole.unique().tolist())


def test_a_value_to_ignore_needs_masks():
    with pytest.raises(DataError, match="these data have none"):
        load("digits", ignore_label=3)
