"""Masks: images whose values are the classes of pixels, read as they are and never blended."""

import struct

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.pixels import IGNORE
from weathered.data.encoded import Encoded
from weathered.data.images import BROKEN, BadImage, centre_square, open_image

CHUNK = 128
ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)
"""Values of the EXIF orientation for images that are shown turned by a quarter."""


def decode_mask(data: bytes, where: str, image_size: int | None = None) -> np.ndarray:
    """The classes (H, W) uint8 of the pixels of one mask: grey values, or the numbers of a palette's colours.

    image_size: the centre square in this size, nearest pixel. Raises BadImage naming `where` if the mask is broken,
    has several channels or values above 255, or was compressed with loss.
    """
    image = open_image(data, where)
    if image.format == "JPEG" or (image.format == "WEBP" and b"VP8 " in data[:16]):
        raise BadImage(f"{where}: a mask must keep every value, but {image.format} files lose some; save it as PNG.")
    try:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise BadImage(
                f"{where}: a mask must be a grey or palette image whose values are classes, this one is {image.mode}; "
                "map its colours to class numbers first."
            )
        if image_size is not None:
            image = centre_square(image, image_size, Image.Resampling.NEAREST)
        values = np.asarray(image)
    except (*BROKEN, IndexError, TypeError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise BadImage(f"{where}: the mask is broken: {' '.join(str(error).split())}.") from error
    if values.dtype != bool and values.size and (values.min() < 0 or values.max() > IGNORE):
        raise BadImage(f"{where}: classes of pixels must be in [0, {IGNORE}], the mask holds {int(values.max())}.")
    values = values.astype(np.uint8)
    return values // (255 // (2**depth - 1)) if (depth := _short_depth(data)) else values


def _short_depth(data: bytes) -> int | None:
    """The bits of a grey PNG file with 2 or 4, whose values Pillow spreads over the whole range; else None."""
    grey = data[:8] == b"\x89PNG\r\n\x1a\n" and data[25:26] == b"\0"
    return data[24] if grey and data[24] in (2, 4) else None


def shown_size(data: bytes, where: str) -> tuple[int, int]:
    """Height and width in pixels of an image as it is shown, from what stands before its pixels. Raises BadImage."""
    image = open_image(data, where)
    width, height = image.size
    turned = image.getexif().get(ORIENTATION, 1) in QUARTER_TURNS if "exif" in image.info else False
    return (width, height) if turned else (height, width)


def decode_masks(
    encoded: Encoded, image_size: int | None, limit: int, skip_bad: bool = False, images: Encoded | None = None
) -> tuple[UInt8[Tensor, "N H W"], dict[int, str]]:
    """All masks of a source in order, and under skip_bad the rows of those that cannot be read, with the reason.

    limit: of their size in bytes. images: what they belong to, row by row. Raises BadImage for one that cannot be read
    without skip_bad, DataError if sizes differ, among masks or from that of the image, or all together are above the
    limit.
    """
    masks: np.ndarray | None = None
    bad: dict[int, str] = {}
    for rows, source in encoded.chunks(np.arange(len(encoded)), CHUNK):
        for row in rows.tolist():
            try:
                data, where = source.read(row), f"{source.where(row)} (mask)"
                if images is not None:
                    _same_size(shown_size(data, where), images, row, where)
                mask = decode_mask(data, where, image_size)
            except BadImage as error:
                if not skip_bad:
                    raise
                bad[row] = str(error)
                continue
            if masks is None:
                size = len(encoded) * mask.size
                if size > limit:
                    raise DataError(
                        f"{encoded.where(0)}: the masks take {size >> 20} MiB, the limit is {limit >> 20} MiB; pass a "
                        "smaller --image-size, or read them in Python with a larger memory_limit_bytes."
                    )
                masks = np.full((len(encoded), *mask.shape), IGNORE, np.uint8)
            if mask.shape != masks.shape[1:]:
                first, this = "x".join(map(str, masks.shape[1:])), "x".join(map(str, mask.shape))
                raise DataError(
                    f"{source.where(row)}: the mask is {this} pixels, others {first}; pass --image-size to bring them "
                    "to one size."
                )
            masks[row] = mask
    if masks is None and bad:
        raise DataError(f"none of the {len(bad)} masks can be read, the first: {next(iter(bad.values()))}")
    return torch.from_numpy(masks if masks is not None else np.empty((0, 1, 1), np.uint8)), bad


def _same_size(size: tuple[int, int], images: Encoded, row: int, where: str) -> None:
    """Raise DataError if a mask of this size belongs to an image of another."""
    try:
        of_image = shown_size(images.read(row), images.where(row))
    except BadImage:
        # said, or skipped, when images are decoded
        return
    if size != of_image:
        mask, image = ("x".join(map(str, each)) for each in (size, of_image))
        raise DataError(f"{where}: the mask is {mask} pixels, its image {image}; both must have one size.")


def agreed_names(training: tuple[str, ...] | None, own: tuple[str, ...] | None, where: str) -> tuple[str, ...] | None:
    """The names of the training set's classes, for a test set, else its own. Raises DataError if both differ."""
    if training is not None and own is not None and training != own:
        raise DataError(f"{where}: the classes are {', '.join(own)}, those of the training set {', '.join(training)}.")
    return training or own


def without_label(masks: UInt8[Tensor, "N H W"], label: int | None) -> UInt8[Tensor, "N H W"]:
    """The masks with the pixels of one class marked as having none; raises DataError for a label outside [0, 255]."""
    if label is None:
        return masks
    if not 0 <= label <= IGNORE:
        raise DataError(f"the label to ignore must be in [0, {IGNORE}], got {label}.")
    return masks.masked_fill(masks == label, IGNORE)
