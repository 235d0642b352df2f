"""`segmentation:PATH`: images and masks of equal names in the folders `images` and `masks`; masks beside a table."""

from pathlib import Path

import torch
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.pixels import IGNORE
from weathered.data.cache import drop_bad
from weathered.data.dataset import Dataset
from weathered.data.encoded import Encoded, FileImages
from weathered.data.images import SUFFIXES
from weathered.data.masks import agreed_names, decode_masks, without_label
from weathered.data.sources.options import ReadOptions, lies_below, refuse_columns, user_path
from weathered.data.stream import StreamInputs


def read_segmentation(rest: str, options: ReadOptions) -> Dataset:
    """Images below PATH/images with a mask each in PATH/masks, under the same name up to the ending.

    Values of masks are classes, 255 marks pixels without one. A file PATH/classes.txt names the classes, one in each
    line. Raises DataError for a folder that is missing, an image without a mask, or a link that leads out.
    """
    if not rest:
        raise DataError("'segmentation' needs a path, as in segmentation:PATH.")
    refuse_columns("segmentation", options)
    root = user_path(rest)
    images, masks = (_files(root, name) for name in ("images", "masks"))
    lost = next((name for name in images if name not in masks), None)
    if lost is not None:
        raise DataError(f"{root / 'images' / images[lost]}: there is no mask '{lost}' in {root / 'masks'}.")
    stems = sorted(images)
    pictures = FileImages(root, [f"images/{images[stem]}" for stem in stems])
    labels = FileImages(root, [f"masks/{masks[stem]}" for stem in stems])
    dataset = masked(pictures, labels, options, root.resolve().name, _class_names(root))
    if not (idle := sorted(set(masks) - set(images))):
        return dataset
    listing = ", ".join(masks[stem] for stem in idle[:3]) + (", ..." if len(idle) > 3 else "")
    return dataset.replace(notes=(*dataset.notes, f"Masks without an image were left out: {len(idle)} ({listing})."))


def masked(
    images: Encoded, masks: Encoded, options: ReadOptions, name: str, class_names: tuple[str, ...] | None
) -> Dataset:
    """Segmentation data from undecoded images and masks, row by row; names of classes are their numbers without any.

    Under `skip_bad` images whose mask cannot be read are left out.

    Raises DataError if a mask has a class without a name.
    """
    inputs = StreamInputs(images, image_size=options.image_size)
    decoded, bad = decode_masks(masks, options.image_size, options.memory_limit_bytes, options.skip_bad, images)
    names = agreed_names(options.class_names, class_names, name)
    labels = without_label(decoded, options.ignore_label)
    if names is not None and len(names) <= IGNORE:
        _require_names(labels, names, masks)
    dataset = Dataset.segmentation(inputs, labels, names, name=name)
    return drop_bad(dataset.replace(source_rows=torch.arange(len(dataset))), bad, options.skip_bad)


def _require_names(labels: Tensor, names: tuple[str, ...], masks: Encoded) -> None:
    unnamed = (labels != IGNORE) & (labels >= len(names))
    if unnamed.any():
        row = int(unnamed.flatten(1).any(1).nonzero()[0])
        value = int(labels[row][unnamed[row]][0])
        raise DataError(
            f"{masks.where(row)}: the mask holds the class {value}, but only 0 to {len(names) - 1} have names; "
            f"add a name, or leave those pixels out with --ignore-label {value}."
        )


def _files(root: Path, name: str) -> dict[str, str]:
    """Stem -> name of the images in the folder of that name, which lie below the root. Raises DataError."""
    folder = root / name
    try:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder; segmentation data have the folders images and masks.")
        found: dict[str, str] = {}
        base = str(root.resolve())
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if not lies_below(str(path.resolve()), base):
                raise DataError(f"{path}: the link leads out of {root}.")
            if path.stem in found:
                raise DataError(f"{path}: there is another image of that name, {found[path.stem]}.")
            found[path.stem] = path.name
    except OSError as error:
        raise DataError(f"{error.filename or folder}: the folder cannot be read: {error.strerror}.") from error
    if not found:
        raise DataError(f"{folder}: there are no images ({', '.join(sorted(SUFFIXES))}).")
    return found


def _class_names(root: Path) -> tuple[str, ...] | None:
    path = root / "classes.txt"
    try:
        if not path.is_file():
            return None
        if not lies_below(str(path.resolve()), str(root.resolve())):
            raise DataError(f"{path}: the link leads out of {root}.")
        names = tuple(line.strip() for line in path.read_text().rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the names of the classes cannot be read: {error}.") from error
    if not names:
        raise DataError(f"{path}: it names no class; write one name in each line, or remove the file.")
    if "" in names:
        raise DataError(f"{path}: line {names.index('') + 1} is empty, but each line names a class.")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a class is named twice.")
    return names
