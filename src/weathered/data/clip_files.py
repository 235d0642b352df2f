"""Clips in files: a folder of frames, or one animated image; decoded when asked for, within limits."""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.clips import evenly
from weathered.data.encoded import FileImages
from weathered.data.images import BROKEN, MAX_PIXELS, BadImage, centre_square, decode, open_image

ANIMATED = frozenset({".gif", ".webp"})
"""Endings of files that may hold a clip."""

MAX_FRAMES = 10_000
"""Most frames that a clip may have."""

MAX_CLIP_PIXELS = 16 * MAX_PIXELS
"""Most pixels, over all of its frames, of an animated image, whose frames must be decoded one after another."""


@dataclass(frozen=True)
class ClipPlace:
    """Where a clip is, relative to the root. frames: its files in order; none where `path` is one animated image."""

    path: str
    frames: tuple[str, ...] = ()


def by_number(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names with their numbers by value, so that frame10 comes after frame9."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


class ClipFiles:
    """Clips decoded on fetch: (T, 3, H, W) uint8; grey frames become three equal channels.

    clips: their places below `root`. frames: T, evenly taken from each. image_size: side of the square to which frames
    are brought; without it all must have one size, that of the first clip that can be read.
    `fetch` raises BadImage naming a clip that is broken, too short or too large, DataError for another size.
    """

    in_memory = False
    dtype = torch.uint8

    def __init__(
        self,
        root: Path,
        clips: Sequence[ClipPlace],
        frames: int,
        image_size: int | None = None,
        size: tuple[int, int] | None = None,
    ):
        self.root, self.clips, self.frames, self.image_size = root, list(clips), frames, image_size
        self._size = size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        if self._size is None:
            self._size = self._probe()
        return self._size

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames, 3, *self.size

    def __len__(self) -> int:
        return len(self.clips)

    def fetch(self, index: Int[Tensor, "B"]) -> Tensor:
        out = torch.empty((len(index), *self.shape), dtype=torch.uint8)
        for i, row in enumerate(index.tolist()):
            out[i] = self.clip(row)
        return out

    def select(self, index: Int[Tensor, "M"]) -> "ClipFiles":
        return ClipFiles(self.root, [self.clips[i] for i in index.tolist()], self.frames, self.image_size, self._size)

    def clip(self, row: int) -> Tensor:
        """One clip (T, 3, H, W)."""
        pixels = self._decode(self.clips[row])
        if pixels.shape[1:3] != self.size:
            raise DataError(
                f"{self.root / self.clips[row].path}: the frames are {pixels.shape[2]} x {pixels.shape[1]} pixels, "
                f"those of other clips {self.size[1]} x {self.size[0]}; pass --image-size to bring all to one size."
            )
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _probe(self) -> tuple[int, int]:
        first: BadImage | None = None
        for place in self.clips:
            try:
                height, width = self._decode(place).shape[1:3]
                return height, width
            except BadImage as error:
                first = first or error
        raise first or DataError("there are no clips.")

    def _decode(self, place: ClipPlace) -> np.ndarray:
        """(T, H, W, 3) uint8."""
        where = str(self.root / place.path)
        if not place.frames:
            return decode_animation(FileImages(self.root, [place.path]).read(0), where, self.frames, self.image_size)
        files = FileImages(self.root, place.frames)
        chosen = _chosen(len(files), self.frames, where)
        pictures = [decode(files.read(i), files.where(i), 3, self.image_size) for i in chosen]
        if len({picture.shape for picture in pictures}) > 1:
            raise BadImage(f"{where}: the frames differ in size; pass --image-size to bring all to one size.")
        return np.stack(pictures)


def decode_animation(data: bytes, where: str, frames: int, image_size: int | None = None) -> np.ndarray:
    """`frames` frames (T, H, W, 3) uint8 of an animated image, evenly taken. Raises BadImage naming `where`."""
    try:
        chosen = _chosen(_count(open_image(data, where), where), frames, where)
        image, pictures = open_image(data, where), []
        for number in chosen:
            image.seek(number)
            frame = image.convert("RGB")
            pictures.append(np.asarray(frame if image_size is None else centre_square(frame, image_size)))
        return np.stack(pictures)
    except (*BROKEN, IndexError, TypeError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise BadImage(f"{where}: the clip is broken: {' '.join(str(error).split()).rstrip('.')}.") from error


def _count(image: Image.Image, where: str) -> int:
    """The number of frames, found by going through them, as a file may claim any."""
    pixels = 0
    for number in range(MAX_FRAMES + 1):
        try:
            image.seek(number)
        except EOFError:
            return number
        pixels += image.size[0] * image.size[1]
        if pixels > MAX_CLIP_PIXELS or image.size[0] * image.size[1] > MAX_PIXELS:
            raise BadImage(
                f"{where}: the clip has more than {MAX_CLIP_PIXELS} pixels in its frames, the limit: it may be a "
                "decompression bomb."
            )
    raise BadImage(f"{where}: the clip has more than {MAX_FRAMES} frames, the limit.")


def _chosen(count: int, frames: int, where: str) -> list[int]:
    if count > MAX_FRAMES:
        raise BadImage(f"{where}: the clip has {count} frames, the limit is {MAX_FRAMES}.")
    if count < frames:
        raise BadImage(f"{where}: the clip has {count} frames, fewer than the {frames} asked for with frames={frames}.")
    return evenly(count, frames)
