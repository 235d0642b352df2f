"""The cache of decoded images: one uint8 .npy per source and set of decode options, memory-mapped on load.

Entries live in ~/.cache/weathered (XDG_CACHE_HOME and WEATHERED_CACHE override it), are named by a digest of
content and options, appear by renaming only when whole, and carry a checksum, so that a damaged one is rebuilt.
Nothing is removed on its own: the folder may be deleted at any time.
"""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weathered.core.atomic import write_atomically
from weathered.data.clip_files import ClipFiles
from weathered.data.dataset import Dataset, MemoryInputs
from weathered.data.images import BadImage
from weathered.data.stream import THREADS, Decoded, StreamInputs, decode_all, progress

FORMAT = "2"
"""Changes whenever the same bytes would decode to other pixels."""
NAMED = 50
"""Images that were dropped and are named one by one."""

WORTH_WHOLE = 0.1
"""From this share of the rows on, a source that fits is decoded whole, so that other subsets find it ready."""


class Entry(NamedTuple):
    """pixels (N, C, H, W) uint8; bad: position -> why, where pixels are zero. stored: whether it is in the cache."""

    pixels: Tensor
    bad: dict[int, str]
    stored: bool


def default_cache_dir() -> Path:
    """WEATHERED_CACHE, else `weathered` in the user's cache folder."""
    if chosen := os.environ.get("WEATHERED_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "weathered"


def materialise(
    dataset: Dataset,
    index: Tensor | None = None,
    *,
    skip_bad: bool = False,
    cache_dir: Path | None = None,
    memory_limit_bytes: int = 2 << 30,
) -> Dataset:
    """The rows of `dataset` at `index` (ascending, all by default), decoded into memory where they fit.

    Inputs that are not streamed are only selected; clips are decoded anew each time, and not cached. What does not fit
    in `memory_limit_bytes` as uint8 stays streamed. skip_bad: drop images that cannot be decoded and note their number;
    otherwise the first of them is raised as DataError. With skip_bad a streamed source is decoded once in full to find
    them.
    """
    whole = dataset.inputs
    chosen = dataset if index is None else dataset.select(index)
    inputs = chosen.inputs
    if isinstance(inputs, ClipFiles):
        return _clips(chosen, inputs, skip_bad, memory_limit_bytes)
    if not isinstance(whole, StreamInputs) or not isinstance(inputs, StreamInputs):
        return chosen
    folder = default_cache_dir() if cache_dir is None else cache_dir
    each = math.prod(inputs.shape)
    if len(inputs) * each > memory_limit_bytes:
        return _streamed(chosen, inputs, folder, skip_bad)
    fits_whole = len(whole) * each <= memory_limit_bytes
    if index is not None and fits_whole and len(inputs) >= WORTH_WHOLE * len(whole):
        entry = decoded(whole, dataset.name, folder)
        positions = {int(p): i for i, p in enumerate(index)} if entry.bad else {}
        bad = {positions[p]: why for p, why in entry.bad.items() if p in positions}
        entry = Entry(entry.pixels[index], bad, entry.stored)
    else:
        entry = decoded(inputs, dataset.name, folder)
    result = chosen.replace(inputs=MemoryInputs(entry.pixels))
    if not entry.stored:
        result = result.replace(notes=(*result.notes, f"The decoded images could not be cached in {folder}."))
    return drop_bad(result, entry.bad, skip_bad)


def _clips(chosen: Dataset, inputs: ClipFiles, skip_bad: bool, memory_limit_bytes: int) -> Dataset:
    fits = len(inputs) * math.prod(inputs.shape) <= memory_limit_bytes
    if not fits and not skip_bad:
        return chosen
    pixels = np.zeros((len(inputs) if fits else 0, *inputs.shape), dtype=np.uint8)
    bad: dict[int, str] = {}

    def work(row: int) -> None:
        try:
            clip = inputs.clip(row)
            if fits:
                pixels[row] = clip.numpy()
        except BadImage as error:
            bad[row] = str(error)

    with ThreadPoolExecutor(THREADS) as pool, progress(len(inputs), f"decoding {chosen.name}") as advance:
        for _ in pool.map(work, range(len(inputs))):
            advance(1)
    result = chosen.replace(inputs=MemoryInputs(torch.from_numpy(pixels))) if fits else chosen
    return drop_bad(result, dict(sorted(bad.items())), skip_bad)


def _streamed(chosen: Dataset, inputs: StreamInputs, folder: Path, skip_bad: bool) -> Dataset:
    result = chosen.replace(
        inputs=StreamInputs(inputs.encoded.random_access(folder), inputs.rows, inputs.image_size, inputs.layout)
    )
    if not skip_bad:
        return result
    path = folder / f"{key(inputs)}.bad.json"
    try:
        bad = {int(p): str(why) for p, why in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        bad = decode_all(inputs, chosen.name, keep=False).bad
        with suppress(OSError):
            write_atomically(path, lambda part: part.write_text(json.dumps(bad)))
    return drop_bad(result, bad, skip_bad)


def drop_bad(dataset: Dataset, bad: dict[int, str], skip_bad: bool) -> Dataset:
    """Without the rows in `bad` if `skip_bad`, noting how many; raises DataError with the first one otherwise."""
    from weathered.core.errors import DataError

    if not bad:
        return dataset
    first = next(iter(bad.values()))
    if not skip_bad:
        more = f" {len(bad) - 1} more cannot be read either." if len(bad) > 1 else ""
        raise DataError(f"{first}{more} Pass --skip-bad to drop such images.")
    keep = torch.ones(len(dataset), dtype=torch.bool)
    keep[list(bad)] = False
    if not keep.any():
        raise DataError(f"{dataset.name}: none of the {len(bad)} images can be read, the first: {first}")
    note = f"{len(bad)} images could not be read and were dropped, the first: {first}"
    if len(bad) > 1:
        # a reason begins with what it is about
        others = [why.partition(": ")[0] for why in bad.values()][1 : 1 + NAMED]
        more = f" and {len(bad) - 1 - NAMED} more" if len(bad) - 1 > NAMED else ""
        note += f" The others: {', '.join(others)}{more}."
    return dataset.select(keep, note)


def key(inputs: StreamInputs) -> str:
    """Digest of everything the decoded pixels depend on: content, rows and options."""
    parts = [FORMAT, inputs.encoded.fingerprint(), str(inputs.image_size), str(inputs.layout.shape)]
    digest = hashlib.sha256("\0".join(parts).encode())
    digest.update(np.ascontiguousarray(inputs.rows, dtype="<i8").tobytes())
    return digest.hexdigest()[:32]


def decoded(inputs: StreamInputs, name: str, folder: Path) -> Entry:
    """The pixels of all `inputs`, from the cache if a sound entry is there, otherwise decoded and stored."""
    path = folder / f"{key(inputs)}.npy"
    entry = read_entry(path)
    if entry is None:
        fresh = decode_all(inputs, name)
        # mapped rather than kept: the processes of a sweep then share one copy
        entry = write_entry(path, fresh) or Entry(torch.from_numpy(fresh.pixels), fresh.bad, False)
    return entry


def read_entry(path: Path) -> Entry | None:
    """A stored entry, memory-mapped copy-on-write; None if it is missing or damaged."""
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
        sound = pixels.dtype == np.uint8 and pixels.ndim == 4 and checksum(pixels) == record["checksum"]
        bad = {int(position): str(why) for position, why in record["bad"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    return Entry(torch.from_numpy(pixels), bad, True) if sound else None


def write_entry(path: Path, fresh: Decoded) -> Entry | None:
    """Store an entry and read it back; None if the folder cannot be written or the disk is full."""
    record = {"checksum": checksum(fresh.pixels), "bad": fresh.bad}
    try:
        write_atomically(path, lambda part: save_array(part, fresh.pixels))
        write_atomically(path.with_suffix(".json"), lambda part: part.write_text(json.dumps(record)))
    except OSError:
        return None
    return read_entry(path)


def save_array(path: Path, array: np.ndarray) -> None:
    """An array as .npy under exactly this name."""
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def checksum(pixels: np.ndarray) -> str:
    """SHA-256 of shape and content, in hexadecimal."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    if pixels.size:
        digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
