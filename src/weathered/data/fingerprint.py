"""A digest of the files behind a recipe's data, so that a run is never mistaken for one on changed data."""

import hashlib
import os
from pathlib import Path

from weathered.data.sources.load import parse_source
from weathered.recipe import DataOptions

WHOLE = 64 << 20
"""Files up to this many bytes are read; larger ones are known by size and time of change."""


def data_fingerprint(options: DataOptions) -> str:
    """Twelve hexadecimal digits for the training and test files. Sources without files count by their name.

    Raises DataError if a path does not exist.
    """
    digest = hashlib.sha256()
    for spec in (options.train, options.test):
        if spec is None:
            continue
        name, rest = parse_source(spec)
        digest.update(name.encode())
        path = Path(rest).expanduser()
        if rest and path.is_dir():
            _add_folder(digest, path)
        elif rest and path.is_file():
            _add_file(digest, path)
        else:
            digest.update(f"{rest}\x00{options.root}".encode())
    return digest.hexdigest()[:12]


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    state = path.stat()
    if state.st_size <= WHOLE:
        digest.update(path.read_bytes())
    else:
        digest.update(f"{state.st_size}\x00{state.st_mtime_ns}".encode())


def _add_folder(digest: "hashlib._Hash", folder: Path) -> None:
    """Names of all folders, and names, sizes and times of all files below."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        place = os.path.relpath(root, folder)
        digest.update(f"{place}\x00".encode())
        for name in sorted(files):
            state = os.stat(os.path.join(root, name))
            digest.update(f"{name}\x00{state.st_size}\x00{state.st_mtime_ns}\x00".encode())
