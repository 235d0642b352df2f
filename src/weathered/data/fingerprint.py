"""A digest of the files behind a recipe's data, so that a run is never mistaken for one on changed data."""

import hashlib
import os
import typing
from pathlib import Path

from weathered.assemble import import_part, resolve
from weathered.core.errors import DataError
from weathered.core.spec import option_types
from weathered.data.auxiliary import is_synthetic, split_spec
from weathered.data.dataset import Dataset
from weathered.data.sources.load import parse_source
from weathered.data.sources.options import user_path
from weathered.recipe import DataOptions

WHOLE = 64 << 20
"""Files up to this many bytes are read; larger ones are known by size and time of change."""


def data_fingerprint(options: DataOptions) -> str:
    """Twelve hexadecimal digits for the files of training, test and auxiliary data and what the makers read.

    Images that a csv file names count by size and time of change. Sources without files count by their name.
    Raises DataError if a path does not exist or cannot be read.
    """
    digest = hashlib.sha256()
    for spec in (options.train, options.test):
        if spec is not None:
            _add_source(digest, spec, options.root)
    for name, source in map(split_spec, options.aux):
        digest.update(f"aux\0{name}\0{source}\0".encode())
        if not is_synthetic(source):
            _add_source(digest, source, options.root)
    for use in resolve(options.make):
        kinds = option_types(import_part(use.entry))
        for name, value in use.options.items():
            if isinstance(value, str) and _allows(kinds.get(name), Dataset):
                digest.update(f"{use.slug}\0{name}\0".encode())
                _add_source(digest, value, None)
            elif isinstance(value, str) and _allows(kinds.get(name), Path):
                digest.update(f"{use.slug}\0{name}\0".encode())
                _add_place(digest, user_path(value))
    return digest.hexdigest()[:12]


def _allows(annotation: object, kind: type) -> bool:
    return annotation is kind or kind in typing.get_args(annotation)


def _add_source(digest: "hashlib._Hash", spec: str, root: str | None) -> None:
    name, rest = parse_source(spec)
    digest.update(name.encode())
    if name == "npz":
        from weathered.data.sources.npz_keys import place_and_part

        rest, part = place_and_part(rest)
        digest.update((part or "").encode())
    if name == "clip-folder":
        from weathered.data.sources.clip_folder import place_and_frames

        rest, frames = place_and_frames(rest)
        digest.update(str(frames).encode())
    if name == "torchvision" and root is not None:
        from weathered.data.sources.torchvision_files import torchvision_files

        for opened in torchvision_files(rest, user_path(root)):
            digest.update(f"{opened.name}\0".encode())
            _add_place(digest, opened)
    path = user_path(rest) if rest and name != "torchvision" else None
    if path is None or not _add_place(digest, path):
        digest.update(f"{rest}\0{root}".encode())
    elif name == "csv":
        from weathered.data.sources.csv_file import image_files

        _add_states(digest, str(path.parent), image_files(path))


def _add_place(digest: "hashlib._Hash", path: Path) -> bool:
    """Add a file or folder; False if there is none."""
    try:
        if path.is_dir():
            _add_folder(digest, path)
        elif path.is_file():
            _add_file(digest, path)
        else:
            return False
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror}.") from error
    return True


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    state = path.stat()
    if state.st_size <= WHOLE:
        digest.update(path.read_bytes())
    else:
        digest.update(f"{state.st_size}\x00{state.st_mtime_ns}".encode())


def _add_folder(digest: "hashlib._Hash", folder: Path) -> None:
    """Names of all folders, names, sizes and times of all files below, and where linked folders lead."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        place = os.path.relpath(root, folder)
        digest.update(os.fsencode(place) + b"\0")
        _add_states(digest, root, sorted(files))
        for name in folders:
            path = os.path.join(root, name)
            if os.path.islink(path):
                digest.update(os.fsencode(f"{name}\0{os.readlink(path)}\0"))


def _add_states(digest: "hashlib._Hash", root: str, names: list[str]) -> None:
    """Name, size and time of change of files; a missing one, or a link to nothing, counts as such."""
    for name in names:
        try:
            state = os.stat(os.path.join(root, name))
            text = f"{name}\x00{state.st_size}\x00{state.st_mtime_ns}\x00"
        except (OSError, ValueError):
            text = f"{name}\x00missing\x00"
        digest.update(os.fsencode(text))
