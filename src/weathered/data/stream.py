"""StreamInputs: images decoded when they are asked for; and the bulk decoder that turns them into one array."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.encoded import Encoded
from weathered.data.images import BadImage, ColourFound, Layout, decode, is_grey, open_image

PROBES = 64
CHUNK = 128
THREADS = 4


class StreamInputs:
    """Images decoded on fetch: (C, H, W) uint8.

    encoded: where the bytes are. rows: which of them, by default all. image_size: side of the square to which
    images are resized; without it all must have one size. layout: shape of an image, found from a sample of the
    images when not given: one channel if none of them has colour.
    `fetch` raises DataError naming the image that is broken, has another size, or has colour among grey ones.
    """

    in_memory = False
    dtype = torch.uint8

    def __init__(
        self,
        encoded: Encoded,
        rows: np.ndarray | None = None,
        image_size: int | None = None,
        layout: Layout | None = None,
    ):
        self.encoded, self.image_size = encoded, image_size
        self.rows = np.arange(len(encoded)) if rows is None else rows
        self._layout = layout

    @property
    def layout(self) -> Layout:
        if self._layout is None:
            self._layout = probe(self.encoded, self.rows, self.image_size)
        return self._layout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Int[Tensor, "B"]) -> Tensor:
        rows = self.rows[index.numpy()]
        out = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for i, row in enumerate(rows.tolist()):
            out[i] = decode_row(self.encoded, row, self.layout, self.image_size)
        return torch.from_numpy(out)

    def select(self, index: Int[Tensor, "M"]) -> "StreamInputs":
        return self.with_rows(self.rows[index.numpy()])

    def with_rows(self, rows: np.ndarray) -> "StreamInputs":
        """The same source at other rows, given by their numbers in the source."""
        return StreamInputs(self.encoded, rows, self.image_size, self._layout)


def probe(encoded: Encoded, rows: np.ndarray, image_size: int | None) -> Layout:
    """The layout, from up to 64 images spread evenly: grey if all of these are, sized as the first.

    Images that cannot be decoded are passed over; raises the first one's error if none can be.
    """
    if not len(rows):
        raise DataError("there are no images.")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).round().astype(int))]
    first_error: DataError | None = None
    first: np.ndarray | None = None
    grey = True
    for part, source in encoded.chunks(np.sort(chosen), PROBES):
        for row in part.tolist():
            try:
                data = source.read(row)
                grey &= is_grey(open_image(data, encoded.where(row)))
                if first is None:
                    first = decode(data, encoded.where(row), 3, image_size)
            except BadImage as error:
                first_error = first_error or error
    if first is None:
        raise first_error or DataError("there are no images.")
    return Layout(1 if grey else 3, *first.shape[:2])


def decode_row(encoded: Encoded, row: int, layout: Layout, image_size: int | None) -> np.ndarray:
    """One image as (C, H, W) uint8; raises DataError naming it if it does not fit the layout."""
    pixels = decode(encoded.read(row), encoded.where(row), layout.channels, image_size)
    if pixels.shape[:2] != (layout.height, layout.width):
        raise DataError(
            f"{encoded.where(row)}: the image is {pixels.shape[1]} x {pixels.shape[0]} pixels, earlier ones are "
            f"{layout.width} x {layout.height}; pass --image-size to bring all to one size."
        )
    return pixels[None] if layout.channels == 1 else pixels.transpose(2, 0, 1)


class Decoded(NamedTuple):
    """pixels (N, C, H, W) uint8, zero where an image was bad; bad: position -> why."""

    pixels: np.ndarray
    bad: dict[int, str]


def decode_all(inputs: StreamInputs, name: str, keep: bool = True) -> Decoded:
    """Decode every image of `inputs` in a pool of threads. keep: False only finds the bad ones, pixels stay empty.

    A source that turns out to have colour is decoded again as colour: it is grey only if all images are.
    Raises DataError if sizes differ.
    """
    try:
        return _decode_all(inputs, name, keep)
    except ColourFound:
        layout = Layout(3, inputs.layout.height, inputs.layout.width)
        return _decode_all(StreamInputs(inputs.encoded, inputs.rows, inputs.image_size, layout), name, keep)


def _decode_all(inputs: StreamInputs, name: str, keep: bool) -> Decoded:
    layout, rows = inputs.layout, inputs.rows
    order = np.argsort(rows, kind="stable")
    pixels = np.zeros((len(rows) if keep else 0, *layout.shape), dtype=np.uint8)
    bad: dict[int, str] = {}

    def work(positions: np.ndarray, source: Encoded) -> dict[int, str]:
        failed: dict[int, str] = {}
        for position in positions.tolist():
            try:
                image = decode_row(source, int(rows[position]), layout, inputs.image_size)
                if keep:
                    pixels[position] = image
            except BadImage as error:
                failed[position] = str(error)
        return failed

    with ThreadPoolExecutor(THREADS) as pool, progress(len(rows), f"decoding {name}") as advance:
        waiting: deque[tuple[int, Future[dict[int, str]]]] = deque()

        def finish_oldest() -> None:
            count, future = waiting.popleft()
            bad.update(future.result())
            advance(count)

        try:
            start = 0
            for part, source in inputs.encoded.chunks(rows[order], CHUNK):
                waiting.append((len(part), pool.submit(work, order[start : start + len(part)], source)))
                start += len(part)
                if len(waiting) > 2 * THREADS:
                    finish_oldest()
            while waiting:
                finish_oldest()
        finally:
            for _, future in waiting:
                future.cancel()
    return Decoded(pixels, dict(sorted(bad.items())))


class Advance(Protocol):
    def __call__(self, count: int, /) -> None: ...


@contextmanager
def progress(total: int, text: str, patience: float = 2.0) -> Iterator[Advance]:
    """A function to report finished items to; a bar appears after `patience` seconds if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(text, total=total)
    begun, shown = time.monotonic(), False

    def advance(count: int, /) -> None:
        nonlocal shown
        bar.advance(task, count)
        if not shown and sys.stderr.isatty() and time.monotonic() - begun > patience:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
