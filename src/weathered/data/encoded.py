"""Encoded images: where the bytes of N images are, and how they are read in bulk or one by one."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from weathered.core.errors import DataError
from weathered.data.images import MAX_BYTES, BadImage


class Encoded(Protocol):
    """N undecoded images."""

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """How messages name this image."""
        ...

    def read(self, row: int) -> bytes:
        """The bytes of one image. Raises BadImage if there are none."""
        ...

    def chunks(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, "Encoded"]]:
        """Split ascending `rows` into runs of at most `size`, each with an object whose `read` is fast for them."""
        ...

    def fingerprint(self) -> str:
        """Hexadecimal digest of the content, equal only for equal bytes in equal order."""
        ...

    def random_access(self, cache_dir: Path) -> "Encoded":
        """The same images where `read` is fast in any order and safe in worker processes."""
        ...


def split_rows(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class FileImages:
    """Images in files below one folder. paths: relative to it, in row order."""

    def __init__(self, root: Path, paths: Sequence[str]):
        self.root, self.paths = root, list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, row: int) -> str:
        return str(self.root / self.paths[row])

    def read(self, row: int) -> bytes:
        path = self.root / self.paths[row]
        try:
            if not path.is_file():
                raise BadImage(f"{path}: there is no such file.")
            with path.open("rb") as stream:
                return stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise BadImage(f"{path}: the file cannot be read: {error.strerror}.") from error

    def chunks(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Encoded]]:
        for part in split_rows(rows, size):
            yield part, self

    def fingerprint(self) -> str:
        """Of (relative path, size, time of change) of each file, in row order; file contents are not read."""
        digest = hashlib.sha256(str(self.root.resolve()).encode())
        for path in self.paths:
            try:
                stat = os.stat(self.root / path)
                digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
            except OSError:
                digest.update(f"{path}\0missing\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def random_access(self, cache_dir: Path) -> Encoded:
        return self


class BytesImages:
    """Images whose bytes are in memory. names: how messages call them."""

    def __init__(self, data: Sequence[bytes | None], name: str, rows: np.ndarray):
        self.data, self.name = data, name
        self.position = {int(row): i for i, row in enumerate(rows)}

    def __len__(self) -> int:
        return len(self.data)

    def where(self, row: int) -> str:
        return f"{self.name} row {row}"

    def read(self, row: int) -> bytes:
        data = self.data[self.position[row]]
        if not data:
            raise BadImage(f"{self.where(row)}: the image has no bytes.")
        return data

    def chunks(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Encoded]]:
        for part in split_rows(rows, size):
            yield part, self

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for data in self.data:
            digest.update(hashlib.sha256(data or b"").digest())
        return digest.hexdigest()

    def random_access(self, cache_dir: Path) -> Encoded:
        return self


def require_rows(encoded: Encoded, name: str) -> None:
    """Raise DataError if there are no images at all."""
    if not len(encoded):
        raise DataError(f"{name}: there are no images.")
