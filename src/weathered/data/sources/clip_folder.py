"""`clip-folder:PATH`: one folder per class, in it one clip each as a folder of frames or an animated gif or webp."""

import os
from pathlib import Path

from weathered.core.errors import DataError
from weathered.data.clip_files import ANIMATED, MAX_FRAMES, ClipFiles, ClipPlace, by_number
from weathered.data.dataset import Dataset
from weathered.data.images import SUFFIXES
from weathered.data.labels import LabelCoder
from weathered.data.sources.folder import ImageTree, is_folder, refuse_splits, shown
from weathered.data.sources.options import ReadOptions, refuse_columns, user_path

FRAMES = 16


def place_and_frames(rest: str) -> tuple[str, int]:
    """The path and the number of frames of `PATH[:frames=T]`, 16 without. Raises DataError for another T."""
    path, mark, frames = rest.rpartition(":frames=")
    if not mark:
        return rest, FRAMES
    if not (frames.isascii() and frames.isdigit() and 1 <= int(frames) <= MAX_FRAMES):
        raise DataError(f"frames must be a whole number in [1, {MAX_FRAMES}], got '{frames}'.")
    return path, int(frames)


def read_clip_folder(rest: str, options: ReadOptions) -> Dataset:
    """Clips by class folder, T frames evenly taken from each, 16 unless `:frames=T` says otherwise.

    A folder of frames is read in the order of their names, numbers by value. Links are followed within the given folder
    only, hidden files and other endings are left out, as by `read_folder`.
    Raises DataError naming a class without a clip, a clip without a frame, or a link that leads out.
    """
    if not rest:
        raise DataError("'clip-folder' needs a path, as in clip-folder:PATH.")
    refuse_columns("clip-folder", options)
    place, frames = place_and_frames(rest)
    root = user_path(place)
    try:
        if not root.is_dir():
            raise DataError(f"{root}: there is no such folder.")
        tree = ImageTree(root)
        classes = tree.classes()
        # frames below a folder of clips look like clips of one class
        refuse_splits(root, classes)
        clips = {name: _clips(tree, name) for name in classes}
    except OSError as error:
        raise DataError(f"{error.filename or root}: the folder cannot be read: {error.strerror}.") from error
    if not classes:
        raise DataError(f"{root}: expected one folder per class, found none.")
    empty = next((name for name in classes if not clips[name]), None)
    if empty is not None:
        raise DataError(
            f"{root}: the class '{empty}' is empty, its folder holds no clip, which is a folder of frames or a file "
            f"({', '.join(sorted(ANIMATED))}); delete it, or put clips into it."
        )
    labels = [name for name in classes for _ in clips[name]]
    coded = LabelCoder(str(root), classes, options.class_names).encode({"label": labels})
    return Dataset(
        ClipFiles(root, [clip for name in classes for clip in clips[name]], frames, options.image_size),
        coded.codes["label"],
        coded.names,
        name=root.resolve().name,
        notes=(*tree.notes([]), f"Of each clip {frames} frames were taken, evenly over its length."),
    )


def _clips(tree: ImageTree, name: str) -> list[ClipPlace]:
    found: list[ClipPlace] = []
    with os.scandir(tree.root / name) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            place = os.path.join(name, entry.name)
            animated = os.path.splitext(entry.name)[1].lower() in ANIMATED
            tree.check(entry, place, is_folder(entry) or animated)
            if is_folder(entry):
                found.append(ClipPlace(place, _frames(tree, place)))
            elif animated:
                found.append(ClipPlace(place))
            else:
                tree.leave_out(entry.name)
    return sorted(found, key=lambda clip: by_number(clip.path))


def _frames(tree: ImageTree, folder: str) -> tuple[str, ...]:
    names: list[str] = []
    with os.scandir(Path(tree.root) / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            image = os.path.splitext(entry.name)[1].lower() in SUFFIXES
            tree.check(entry, os.path.join(folder, entry.name), image)
            if is_folder(entry):
                raise DataError(
                    f"{tree.root}: the clip '{shown(folder)}' holds the folder '{shown(entry.name)}', but a clip is a "
                    "folder of frames; give the folder of class folders."
                )
            if image:
                names.append(entry.name)
            else:
                tree.leave_out(entry.name)
    if not names:
        raise DataError(f"{tree.root}: the clip '{shown(folder)}' holds no frame ({', '.join(sorted(SUFFIXES))}).")
    return tuple(os.path.join(folder, name) for name in sorted(names, key=by_number))
