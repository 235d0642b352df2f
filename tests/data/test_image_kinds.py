"""Images of every mode and format in one pixel form, with no warning and nothing changed for others."""

import io
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from data_files import colour, encode, grey
from PIL import Image

from weathered.data.images import MAX_PIXELS, BadImage, decode

pytestmark = pytest.mark.filterwarnings("error")


def saved(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def claiming(kind, width, height):
    """An image file of a few hundred bytes whose header claims this size."""
    data = bytearray(saved(Image.fromarray(grey(0, 6, 6)), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "JPEG":
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    elif kind == "PPM":
        data = bytearray(b"P5\n%d %d\n255\n" % (width, height) + bytes(36))
    return bytes(data)


KINDS = ("PNG", "BMP", "GIF", "JPEG", "PPM")


@pytest.mark.parametrize("side", [9_460, 13_000, 20_000, 60_000])
@pytest.mark.parametrize("kind", KINDS)
def test_too_large_an_image_is_refused_without_a_warning(kind, side):
    # Pillow would warn up to 13,377 and raise an error of its own beyond
    with pytest.raises(BadImage, match=f"shelf 7: the image claims {side} x {side} pixels, the limit is {MAX_PIXELS}"):
        decode(claiming(kind, side, side), "shelf 7", 3)


def test_the_limit_is_ours_wherever_others_put_that_of_pillow(monkeypatch):
    image = encode(grey(0, 40, 40))
    for limit in (100, 1000, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert np.array_equal(decode(image, "x", 1), grey(0, 40, 40))
        with pytest.raises(BadImage, match="the limit is"):
            decode(claiming("PNG", 60_000, 60_000), "x", 1)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_the_filters_of_warnings_are_left_alone_by_many_threads():
    before = list(warnings.filters)

    def work(side):
        with pytest.raises(BadImage):
            decode(claiming("PNG", side, side), "x", 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [10_000, 60_000] * 100))
    assert warnings.filters == before


def test_alpha_and_transparency_are_dropped():
    rgb, level = colour(0, 8, 9), grey(0, 8, 9)
    alpha = Image.fromarray(np.dstack([rgb, level]))
    for data in (saved(alpha), saved(alpha, "TIFF"), saved(alpha, "WEBP", lossless=True, exact=True)):
        assert np.array_equal(decode(data, "x", 3), rgb)
    assert np.array_equal(decode(saved(Image.fromarray(rgb), transparency=(1, 2, 3)), "x", 3), rgb)
    grey_image = Image.fromarray(level)
    for data in (saved(Image.merge("LA", (grey_image, grey_image))), saved(grey_image, transparency=5)):
        assert np.array_equal(decode(data, "x", 1), level)
        assert np.array_equal(decode(data, "x", 3), np.repeat(level[..., None], 3, 2))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test_palettes_become_their_colours(transparency):
    palette = Image.fromarray(colour(0, 8, 9)).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(decode(saved(palette, **options), "x", 3), expected)


def test_deep_and_printing_colours():
    rgb, level = colour(0, 8, 9), grey(0, 8, 9)
    deep = Image.fromarray((level.astype(np.uint16) << 8) + 9)
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(decode(saved(deep, kind), "x", 1), level)
    assert np.array_equal(decode(saved(Image.fromarray(rgb).convert("CMYK"), "TIFF"), "x", 3), rgb)
    flat = np.full((8, 8, 3), (200, 30, 60), dtype=np.uint8)
    printed = decode(saved(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100), "x", 3)
    assert np.abs(printed.astype(int) - flat).max() <= 2


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_the_first_image_of_several_is_taken(kind, options):
    first, *others = (Image.fromarray(colour(i, 8, 9)) for i in range(3))
    data = saved(first, kind, save_all=True, append_images=others, **options)
    assert np.array_equal(decode(data, "x", 3), colour(0, 8, 9))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_orientation_is_applied_in_every_format(kind, options):
    pixels = colour(0, height=4, width=9)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    data = saved(Image.fromarray(pixels), kind, exif=exif, **options)
    assert np.array_equal(decode(data, "x", 3), np.rot90(pixels, -1))
    if kind == "PNG":
        # the same chunk behind the pixels, where some programs write it
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        rest, last = data[:start] + data[end:], len(data) - (end - start) - 12
        assert np.array_equal(decode(rest, "x", 3), pixels)
        moved = rest[:last] + data[start:end] + rest[last:]
        assert np.array_equal(decode(moved, "x", 3), np.rot90(pixels, -1))


def outcome(data, image_size):
    """Pixels, or the sentence of the refusal. Pillow warns of damaged metadata in a readable image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return decode(data, "shelf 7", 3, image_size)
        except BadImage as error:
            return str(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_damaged_bytes_give_pixels_or_one_sentence(kind):
    draw = random.Random(0)
    whole = saved(Image.fromarray(colour(1, 20, 30)), kind)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            data[draw.randrange(min(len(data), draw.choice([100, len(data)])))] = draw.randrange(256)
        result = outcome(bytes(data), draw.choice([None, 8]))
        if isinstance(result, str):
            assert result.startswith("shelf 7: ")
            assert "\n" not in result
        else:
            assert result.dtype == np.uint8
            assert result.shape[2] == 3
