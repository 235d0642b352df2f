"""What every source is told, whether it needs it or not."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from weathered.core.errors import DataError
from weathered.data.labels import MissingColumn


@dataclass(frozen=True)
class ReadOptions:
    """label_column, clean_column: columns of labels and of the truth. class_names: of the training set, when a test set
    is read. image_size: side to which images are resized. root: folder of downloaded files. test: whether a test set is
    read, so that the test split is wanted where a source has one and none is named. memory_limit_bytes: arrays above it
    are refused. not_features: label columns of the training table, which are no features of a test table either.
    left_out: columns of a table that the user wants for no feature; a training table must have them. mask_column: masks
    beside images, which take the place of labels. ignore_label: value of pixels without a class, besides 255. skip_bad:
    whether images whose mask cannot be read are left out. group_column: the group of each row; group_names: of the
    training set, when a test set is read. rows: a column and its value, as in split=train, that the rows have; chosen
    (N,) bool: which those are. aside: columns that are read for something else, such as groups, and so are no features.
    caption_column: the caption of each image; words: the vocabulary of the training set, when a test set is read.
    unlabelled: whether a table without a label column is read with all labels 0; it needs class_names.
    """

    label_column: str | None = None
    clean_column: str | None = None
    class_names: tuple[str, ...] | None = None
    image_size: int | None = None
    root: Path | None = None
    test: bool = False
    memory_limit_bytes: int = 2 << 30
    not_features: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()
    mask_column: str | None = None
    ignore_label: int | None = None
    skip_bad: bool = False
    group_column: str | None = None
    group_names: tuple[str, ...] = ()
    rows: str | None = None
    chosen: np.ndarray | None = None
    aside: frozenset[str] = frozenset()
    caption_column: str | None = None
    words: tuple[str, ...] = ()
    unlabelled: bool = False


Value = TypeVar("Value")


def of_chosen(values: Sequence[Value], options: ReadOptions) -> Sequence[Value]:
    """Values of rows, where rows that were not chosen have that of the first that was.

    They are dropped later; until then whatever they hold, such as no label, must not matter, and rows keep their
    numbers.
    """
    if options.chosen is None or not options.chosen.any():
        return values
    first = values[int(options.chosen.argmax())]
    return [value if chosen else first for value, chosen in zip(values, options.chosen, strict=True)]


def user_path(text: str) -> Path:
    """A path as a user writes it, `~` resolved. Raises DataError if the home folder is unknown."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{text}: the home folder is not known; write the path in full.") from error


def lies_below(path: str, base: str) -> bool:
    """Whether a resolved path lies in the resolved folder `base`."""
    return path.startswith(base.rstrip(os.sep) + os.sep)


def existing_file(rest: str, source: str) -> Path:
    """The path a spec names. Raises DataError if it is empty, missing, a folder, or may not be read."""
    if not rest:
        raise DataError(f"'{source}' needs a path, as in {source}:PATH.")
    path = user_path(rest)
    try:
        if not path.exists():
            raise DataError(f"{path}: there is no such file.")
        if not path.is_file():
            raise DataError(f"{path}: expected a file.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read: {error.strerror}.") from error
    return path


def check_memory(where: str | Path, size: int, limit: int, remedy: str) -> None:
    """Raise DataError if arrays of `size` bytes are above the memory limit of `limit` bytes. remedy: what to do."""
    if size > limit:
        raise DataError(
            f"{where}: the arrays take {-(-size >> 20)} MiB, the limit is {limit >> 20} MiB; {remedy}, or read them in "
            "Python with a larger memory_limit_bytes."
        )


def refuse_columns(source: str, options: ReadOptions) -> None:
    """Raise MissingColumn if a label, clean or mask column was named for a source without columns."""
    asked = {"label": options.label_column, "clean": options.clean_column, "mask": options.mask_column}
    for name, value in asked.items():
        if value is not None:
            raise MissingColumn(f"{source} has no columns, so there is no {name} column '{value}'.")
