"""`folder:PATH`: one folder per class, images below it at any depth."""

import os
from pathlib import Path

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.encoded import FileImages
from weathered.data.images import SUFFIXES
from weathered.data.labels import LabelCoder
from weathered.data.sources.options import ReadOptions, refuse_columns
from weathered.data.stream import StreamInputs


def class_folders(path: Path) -> list[str]:
    """Names of the folders below `path`, sorted; hidden ones are left out."""
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))


SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


def images_below(root: Path, folder: str) -> list[str]:
    """Paths of image files below root/folder, relative to root, sorted; hidden files and other suffixes left out."""
    found = []
    for place, folders, files in os.walk(root / folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        relative = os.path.relpath(place, root)
        found += [
            os.path.join(relative, f)
            for f in files
            if not f.startswith(".") and os.path.splitext(f)[1].lower() in SUFFIXES
        ]
    return sorted(found)


def read_folder(rest: str, options: ReadOptions) -> Dataset:
    """Images by class folder; class names are the folders' names in sorted order.

    Raises DataError if there is no class folder, or one holds no image.
    """
    if not rest:
        raise DataError("'folder' needs a path, as in folder:PATH.")
    refuse_columns("folder", options)
    root = Path(rest).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder.")
    try:
        classes = class_folders(root)
        paths = {name: images_below(root, name) for name in classes}
    except OSError as error:
        raise DataError(f"{root}: the folder cannot be read: {error.strerror}.") from error
    if classes and set(map(str.lower, classes)) <= SPLIT_NAMES and any(class_folders(root / name) for name in classes):
        listed = ", ".join(classes)
        raise DataError(
            f"{root}: {listed} look like splits and not like classes; train on one and name the other "
            f"with --test, as in: weathered train {root}/{classes[-1]} --test {root}/{classes[0]}"
        )
    if not classes:
        raise DataError(f"{root}: expected one folder per class, found none.")
    empty = [name for name in classes if not paths[name]]
    if empty:
        raise DataError(
            f"{root}: the class '{empty[0]}' is empty, its folder holds no image ({', '.join(sorted(SUFFIXES))})."
        )
    labels = [name for name in classes for _ in paths[name]]
    coded = LabelCoder(str(root), classes, options.class_names).encode({"label": labels})
    files = FileImages(root, [path for name in classes for path in paths[name]])
    return Dataset(
        StreamInputs(files, image_size=options.image_size), coded.codes["label"], coded.names, name=root.resolve().name
    )
