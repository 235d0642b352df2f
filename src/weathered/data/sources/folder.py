"""`folder:PATH`: one folder per class, images below it at any depth. `images:PATH`: images without classes."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.encoded import FileImages
from weathered.data.images import SUFFIXES
from weathered.data.labels import LabelCoder
from weathered.data.sources.options import ReadOptions, lies_below, refuse_columns, user_path
from weathered.data.stream import StreamInputs

SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


def class_folders(path: Path) -> list[str]:
    """Names of the folders below `path`, sorted; hidden ones are left out. Raises OSError."""
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and is_folder(e))


def read_folder(rest: str, options: ReadOptions) -> Dataset:
    """Images by class folder; class names are the folders' names in sorted order.

    Only what lies in the given folder is read, which may be a link itself: a link in it, to a class, a folder or an
    image, is followed if its target is in the given folder too, and refused otherwise. Hidden files and files with
    other endings are left out; the notes count the latter.
    Raises DataError naming a link that leads out, in a circle or nowhere, or a class without an image.
    """
    if not rest:
        raise DataError("'folder' needs a path, as in folder:PATH.")
    refuse_columns("folder", options)
    root = user_path(rest)
    try:
        if not root.is_dir():
            raise DataError(f"{root}: there is no such folder.")
        tree = ImageTree(root)
        classes = tree.classes()
        refuse_splits(root, classes)
        paths = {name: sorted(tree.images(name)) for name in classes}
    except OSError as error:
        raise DataError(f"{error.filename or root}: the folder cannot be read: {error.strerror}.") from error
    if not classes:
        raise DataError(f"{root}: expected one folder per class, found none.")
    empty = [name for name in classes if not paths[name]]
    if empty:
        raise DataError(
            f"{root}: the class '{empty[0]}' is empty, its folder holds no image "
            f"({', '.join(sorted(SUFFIXES))}); delete it, or put images into it."
        )
    labels = [name for name in classes for _ in paths[name]]
    coded = LabelCoder(str(root), classes, options.class_names).encode({"label": labels})
    files = FileImages(root, [path for name in classes for path in paths[name]])
    return Dataset(
        StreamInputs(files, image_size=options.image_size),
        coded.codes["label"],
        coded.names,
        name=root.resolve().name,
        notes=tree.notes(files.paths),
    )


def read_images(rest: str, options: ReadOptions) -> Dataset:
    """All images below a folder at any depth as one class, `none`: auxiliary and out-of-distribution data.

    Links and files with other endings are treated as in `read_folder`. Raises DataError if there is no image.
    """
    if not rest:
        raise DataError("'images' needs a path, as in images:PATH.")
    refuse_columns("images", options)
    root = user_path(rest)
    try:
        if not root.is_dir():
            raise DataError(f"{root}: there is no such folder.")
        tree = ImageTree(root)
        paths = sorted(tree.images(""))
    except OSError as error:
        raise DataError(f"{error.filename or root}: the folder cannot be read: {error.strerror}.") from error
    if not paths:
        raise DataError(f"{root}: there is no image below this folder ({', '.join(sorted(SUFFIXES))}).")
    inputs = StreamInputs(FileImages(root, paths), image_size=options.image_size)
    labels = torch.zeros(len(paths), dtype=torch.int64)
    names = options.class_names or ("none",)
    return Dataset(inputs, labels, names, name=root.resolve().name, notes=tree.notes([]))


def refuse_splits(root: Path, classes: list[str]) -> None:
    """Raise DataError where folders seem to be splits rather than classes."""
    if classes and set(map(str.lower, classes)) <= SPLIT_NAMES and any(class_folders(root / name) for name in classes):
        listed = ", ".join(classes)
        raise DataError(
            f"{root}: {listed} look like splits and not like classes; train on one and name the other "
            f"with --test, as in: weathered train {root}/{classes[-1]} --test {root}/{classes[0]}"
        )


class ImageTree:
    """Walks one folder, its links checked, and remembers what was left out."""

    def __init__(self, root: Path):
        self.root, self.base = root, os.path.realpath(root)
        self.stray = 0
        self.others: set[str] = set()
        self.other_count = 0

    def classes(self) -> list[str]:
        found = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                self.check(entry, entry.name, is_folder(entry))
                if is_folder(entry):
                    _refuse_unreadable_name(self.root, entry.name)
                    found.append(entry.name)
                else:
                    self.stray += _is_image(entry.name)
        return sorted(found)

    def images(self, folder: str, seen: set[str] | None = None) -> Iterator[str]:
        """Paths of the images below a folder, relative to the root. seen: resolved folders read for this class."""
        seen, real = set() if seen is None else seen, os.path.realpath(self.root / folder)
        if real in seen:
            raise DataError(
                f"{self.root}: the folder '{shown(folder)}' is read twice for one class, because of a link; remove it."
            )
        seen.add(real)
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                place = os.path.join(folder, entry.name)
                self.check(entry, place, is_folder(entry) or _is_image(entry.name))
                if is_folder(entry):
                    yield from self.images(place, seen)
                elif _is_image(entry.name):
                    yield place
                else:
                    self.leave_out(entry.name)

    def leave_out(self, name: str) -> None:
        """Remember a file that is no image."""
        self.other_count += 1
        self.others.add(os.path.splitext(name)[1].lower() or "no ending")

    def check(self, entry: os.DirEntry[str], place: str, wanted: bool) -> None:
        """Raise DataError for a link out of the root if what it leads to is wanted, and for one that leads nowhere."""
        if not entry.is_symlink():
            return
        broken = not os.path.exists(entry.path)
        if not wanted and not broken:
            return
        target = os.path.realpath(entry.path)
        if target != self.base and not lies_below(target, self.base):
            raise DataError(
                f"{self.root}: the link '{shown(place)}' leads out of this folder, and only what lies in it is read; "
                "put a copy in its place, or remove it."
            )
        # a broken image is left to the decoder, which may be told to skip it
        if broken and not wanted:
            raise DataError(f"{self.root}: the link '{shown(place)}' leads nowhere; mend it or remove it.")

    def notes(self, paths: list[str]) -> tuple[str, ...]:
        """What was left out. paths: of images in class folders, to tell of folders below these."""
        notes = []
        deep = next((path for path in paths if path.count(os.sep) > 1), None)
        if deep is not None:
            inner, name = shown(os.path.dirname(deep)), deep.split(os.sep)[0]
            notes.append(f"Folders below a class folder count to its class, such as {inner} to {name}.")
        if self.stray:
            notes.append(f"Images beside the class folders that belong to no class and were left out: {self.stray}.")
        if self.other_count:
            endings = ", ".join(shown(ending) for ending in sorted(self.others)[:8])
            notes.append(f"Files without the ending of an image ({endings}) that were left out: {self.other_count}.")
        return tuple(notes)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        # a link that leads in a circle
        return False


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def shown(name: str) -> str:
    """A file's name as text, whatever bytes it has."""
    return name.encode("utf-8", "replace").decode()


def _refuse_unreadable_name(root: Path, name: str) -> None:
    if shown(name) != name:
        raise DataError(f"{root}: the name of the class folder '{shown(name)}' is not UTF-8 text; rename it.")
