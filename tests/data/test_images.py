"""Decoding: right pixels for every mode, and one sentence for everything that is broken or dangerous."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from data_files import colour, encode, grey, write_folder, write_parquet
from PIL import Image

from weathered.core.errors import DataError
from weathered.data import load
from weathered.data.images import MAX_BYTES, BadImage, ColourFound, decode


def saved(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bomb(side=60_000):
    """A PNG of a few kilobytes that claims side x side pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_modes_become_rgb_or_grey():
    rgb, level = colour(0), grey(0)
    assert np.array_equal(decode(encode(rgb), "x", 3), rgb)
    assert np.array_equal(decode(encode(level), "x", 1), level)
    assert np.array_equal(decode(encode(level), "x", 3), np.repeat(level[..., None], 3, 2))
    alpha = np.dstack([rgb, level])
    assert np.array_equal(decode(encode(alpha), "x", 3), rgb)
    black_white = Image.fromarray(level > 127)
    assert np.array_equal(decode(saved(black_white), "x", 1), np.where(level > 127, 255, 0))
    palette = Image.fromarray(rgb).quantize(256)
    assert np.array_equal(decode(saved(palette), "x", 3), np.asarray(palette.convert("RGB")))
    deep = (level.astype(np.uint16) << 8) + 7
    assert np.array_equal(decode(saved(Image.fromarray(deep)), "x", 1), level)


def test_colour_asked_as_grey_is_refused():
    with pytest.raises(ColourFound, match="shelf 7: the image has colour"):
        decode(encode(colour(0)), "shelf 7", 1)


def test_exif_orientation_is_applied():
    pixels = colour(0, height=4, width=9)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    data = saved(Image.fromarray(pixels), exif=exif)
    assert np.array_equal(decode(data, "x", 3), np.rot90(pixels, -1))


def test_resizing_takes_the_centre_square_and_keeps_flat_areas():
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    wide[:, :10] = 50
    out = decode(encode(wide), "x", 3, image_size=5)
    assert out.shape == (5, 5, 3)
    assert (out[:, 1:-1] == 200).all()
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    small = decode(encode(stripes), "x", 1, image_size=8)
    # without antialiasing stripes would give 0 or 255
    assert abs(small.astype(int) - 128).max() < 12
    photograph = np.full((400, 600, 3), 90, dtype=np.uint8)
    assert (abs(decode(encode(photograph, "JPEG"), "x", 3, image_size=16).astype(int) - 90) <= 2).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image of a known format"),
        (b"hello", "not an image of a known format"),
        (encode(colour(0, 40, 40))[:-400], "the image is broken"),
        (encode(colour(0, 40, 40), "JPEG")[:-400], "the image is broken"),
        (encode(colour(0, 40, 40), "JPEG")[:10], "not an image|broken"),
        (bomb(), "decompression bomb"),
        (bomb(10_000), "claims 10000 x 10000 pixels, the limit is 89478485"),
        (b"\x89PNG" + b"\0" * MAX_BYTES, "the image file has 128 MiB, the limit is 128 MiB"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"), "floating-point pixels"),
    ],
    ids=["empty", "text", "cut-png", "cut-jpeg", "header", "bomb", "large", "bytes", "postscript", "float"],
)
@pytest.mark.filterwarnings("error")
def test_bad_images_in_one_sentence(data, message):
    with pytest.raises(BadImage, match=message) as caught:
        decode(data, "shelf 7", 3)
    assert str(caught.value).startswith("shelf 7: ")
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named_or_skipped_and_counted(tmp_path):
    pixels = write_folder(tmp_path / "set", ["a", "b"])
    broken = tmp_path / "set" / "b" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "set" / "a" / "9.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a/9\.png: not an image.* 1 more cannot be read either\. Pass --skip-bad"):
        load(str(tmp_path / "set"))
    data = load(str(tmp_path / "set"), skip_bad=True)
    assert len(data) == 7
    assert data.labels.tolist() == [0] * 4 + [1] * 3
    kept = [pixels["a", i] for i in range(4)] + [pixels["b", i] for i in (0, 1, 3)]
    expected = torch.from_numpy(np.stack(kept).transpose(0, 3, 1, 2).copy())
    assert torch.equal(data.inputs.fetch(torch.arange(7)), expected)
    assert "2 images could not be read and were dropped" in data.notes[-1]
    # the bad ones are remembered with the cached pixels, in either order of asking
    with pytest.raises(DataError, match=r"a/9\.png"):
        load(str(tmp_path / "set"))


def test_skipping_keeps_rows_together_under_a_limit(tmp_path):
    images = [encode(colour(i)) for i in range(40)]
    for row in range(0, 40, 5):
        images[row] = None
    path = write_parquet(tmp_path / "x.parquet", images, {"label": [i % 4 for i in range(40)], "row": list(range(40))})
    with pytest.raises(DataError, match="the image has no bytes"):
        load(str(path))
    for limit in (3, 20, None):
        data = load(str(path), skip_bad=True, limit=limit, seed=1)
        rows = data.extra["row"].tolist()
        assert not any(row % 5 == 0 for row in rows)
        assert data.labels.tolist() == [row % 4 for row in rows]
        expected = torch.from_numpy(np.stack([colour(row) for row in rows]).transpose(0, 3, 1, 2).copy())
        assert torch.equal(data.inputs.fetch(torch.arange(len(rows))), expected)


def test_nothing_but_broken_images(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [b"no", b"nor"], {"label": [0, 1]})
    for skip_bad in (False, True):
        with pytest.raises(DataError, match="row 0: not an image"):
            load(str(path), skip_bad=skip_bad)


def test_sizes_that_differ_need_image_size(tmp_path):
    write_folder(tmp_path / "set", ["a", "b"], make=lambda seed: colour(seed, 6, 6 + seed // 100))
    with pytest.raises(
        DataError, match=r"b/0\.png: the image is 7 x 6 pixels, earlier ones are 6 x 6; pass --image-size"
    ):
        load(str(tmp_path / "set"))
    with pytest.raises(DataError, match="--image-size"):
        load(str(tmp_path / "set"), skip_bad=True)
    assert load(str(tmp_path / "set"), image_size=4).inputs.shape == (3, 4, 4)
    assert load("digits", image_size=16).inputs.shape == (1, 16, 16)
