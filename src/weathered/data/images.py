"""Decoding: bytes of one image to uint8 pixels, with everything refused that untrusted files may hold.

EXIF orientation is applied, so that pixels are as a person sees them. Alpha is dropped, 16-bit grey is cut to its
upper 8 bits, palettes and CMYK become RGB. Of animations and files of several pages the first image is taken.
Formats that run programs or hold many files (EPS, PDF) are not opened.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from weathered.core.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".pbm"})
MAX_PIXELS = 89_478_485
"""Largest width * height that is decoded: 256 MiB of RGB."""
MAX_BYTES = 128 << 20
"""Largest file of one image that is read."""
BROKEN = (OSError, ValueError, SyntaxError, EOFError, OverflowError)
"""What Pillow raises for broken files of every format."""
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


class BadImage(DataError):
    """One image cannot be decoded; `skip_bad` drops such images."""


@dataclass(frozen=True)
class Layout:
    """What all images of a source share. channels: 1 or 3. height, width: pixels after resizing."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def open_image(data: bytes, where: str) -> Image.Image:
    """Read the header only. Raises BadImage, naming `where`, for what is no image, too large, or a bomb."""
    if len(data) > MAX_BYTES:
        raise BadImage(f"{where}: the image file has {len(data) >> 20} MiB, the limit is {MAX_BYTES >> 20} MiB.")
    try:
        image = _open(data)
    except Image.DecompressionBombError as error:
        raise BadImage(f"{where}: the image claims too many pixels and may be a decompression bomb.") from error
    except BROKEN as error:
        raise BadImage(f"{where}: the image is broken: {_one_line(error)}.") from error
    if image is None:
        raise BadImage(f"{where}: not an image of a known format ({', '.join(FORMATS)}).")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"{where}: the image claims {width} x {height} pixels, the limit is {MAX_PIXELS}: "
            "it may be a decompression bomb."
        )
    return image


def _open(data: bytes) -> Image.Image | None:
    """What Image.open does, without its check of the size: that warns through state shared by all threads, and below
    a limit that others may have moved.
    """
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(data[:16])
        # a text says why such files cannot be opened
        if not accepted or isinstance(accepted, str):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    return None


def is_grey(image: Image.Image) -> bool:
    """Whether an image that was opened holds no colour, judged by its mode."""
    return image.mode in GREY_MODES


def decode(data: bytes, where: str, channels: int, image_size: int | None = None) -> np.ndarray:
    """Pixels of one image: (H, W) for one channel, (H, W, 3) for three, uint8.

    channels: 1 refuses images with colour, 3 repeats grey. image_size: side of the square that is returned, the
    centre square of the image scaled with antialiasing. Raises BadImage naming `where` if the image is broken or
    truncated, ColourFound if one channel is asked of an image with colour.
    """
    image = open_image(data, where)
    if channels == 1 and not is_grey(image):
        raise ColourFound(f"{where}: the image has colour, but the first images of this source are grey.")
    try:
        if image_size is not None and image.format == "JPEG":
            # half the work for large photographs, still twice the pixels that are needed
            image.draft(None, (2 * image_size, 2 * image_size))
        if image.format == "PNG":
            # its orientation may stand behind the pixels
            image.load()
        if image.format == "TIFF" or "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image = _to_eight_bit(image, "L" if channels == 1 else "RGB", where)
        if image_size is not None:
            image = centre_square(image, image_size)
        return np.asarray(image)
    except (*BROKEN, IndexError, TypeError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise BadImage(f"{where}: the image is broken: {_one_line(error)}.") from error


class ColourFound(DataError):
    """An image has colour where the source seemed to be grey."""


def _to_eight_bit(image: Image.Image, mode: str, where: str) -> Image.Image:
    if image.mode == "F":
        raise BadImage(f"{where}: floating-point pixels have no known range, save the image with 8 bits.")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise BadImage(f"{where}: 32-bit pixels have no known range, save the image with 8 bits.")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    # a palette's alpha would only bring a warning
    image.info.pop("transparency", None)
    return image if image.mode == mode else image.convert(mode)


def centre_square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """The largest square in the middle of an image, in (size, size)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), resample, box=(left, top, left + side, top + side))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
