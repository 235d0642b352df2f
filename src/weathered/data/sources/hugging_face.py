"""`hf:NAME[@CONFIG][:SPLIT]`: a data set of the Hugging Face hub, through the optional package `datasets`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.encoded import Encoded, split_rows
from weathered.data.images import MAX_BYTES, BadImage
from weathered.data.sources.arrow import read_extra, read_labels, table_dataset
from weathered.data.sources.options import ReadOptions
from weathered.data.stream import StreamInputs


def read_hugging_face(rest: str, options: ReadOptions) -> Dataset:
    """The split `train`, or `test` for a test set, of a data set; images or a table of numbers.

    Code that comes with a data set is never run. Raises DataError if `datasets` is not installed or the data set,
    configuration or split cannot be loaded.
    """
    place, _, split = rest.partition(":")
    name, _, config = place.partition("@")
    if not name:
        raise DataError("'hf' needs a name, as in hf:NAME, hf:NAME@CONFIG or hf:NAME:SPLIT.")
    if options.mask_column is not None:
        raise DataError(f"hf:{name}: masks are read from files; save the set as parquet and name that file.")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
        import huggingface_hub
    except ImportError as error:
        raise DataError("hf:NAME needs the package 'datasets'; install it with pip install 'weathered[hf]'.") from error
    split = split or ("test" if options.test else "train")
    try:
        data = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:
        # the package raises errors of many kinds, for networks, scripts, names and formats
        text = " ".join(str(error).split())[:300]
        raise DataError(f"hf:{name}: the split '{split}' cannot be loaded: {text}.") from error
    names = {
        column: {"names": list(feature.names)}
        for column, feature in data.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    image = next((c for c, feature in data.features.items() if isinstance(feature, datasets.Image)), None)
    others = [c for c, feature in data.features.items() if not isinstance(feature, datasets.Image)]
    table = data.select_columns(others).with_format("arrow")[:]
    label = f"hf:{name}"
    if image is None:
        return table_dataset(table, names, options, label, label)
    labels = read_labels(table, others, names, options, label)
    undecoded = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    places = [datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.EXTRACTED_DATASETS_PATH]
    allowed = prefixes_of_files(name, places, huggingface_hub.constants.HF_HUB_CACHE)
    return Dataset(
        StreamInputs(HubImages(undecoded, image, label, allowed), image_size=options.image_size),
        labels.labels,
        labels.names,
        name=name.rpartition("/")[2],
        clean_labels=labels.clean,
        extra=read_extra(table, [c for c in others if c not in labels.used]),
    )


def prefixes_of_files(name: str, downloads: Sequence[str | Path], hub_cache: str | Path) -> tuple[str, ...]:
    """How the resolved paths of image files begin that may be opened.

    They lie in the folder `name`, if it is one, in the folders `downloads`, or in those of data sets in the hub's
    cache.
    """
    folders = [name, *downloads] if os.path.isdir(name) else downloads
    own = (f"{os.path.realpath(folder)}{os.sep}" for folder in folders)
    return (*own, f"{os.path.realpath(hub_cache)}{os.sep}datasets--")


class HubImages:
    """The image column of a `datasets.Dataset`, undecoded; it is memory-mapped, so every order is fast.

    allowed: how the resolved paths of files begin that may be opened. A table may name any file of this computer.
    """

    def __init__(self, data: Any, column: str, name: str, allowed: tuple[str, ...]):
        self.data, self.column, self.name, self.allowed = data, column, name, allowed

    def __len__(self) -> int:
        return len(self.data)

    def where(self, row: int) -> str:
        return f"{self.name} row {row}"

    def read(self, row: int) -> bytes:
        image = self.data[row][self.column] or {}
        if image.get("bytes"):
            return image["bytes"]
        if not image.get("path"):
            raise BadImage(f"{self.where(row)}: the image has no bytes.")
        try:
            path = os.path.realpath(image["path"])
            if path.startswith(self.allowed):
                with open(path, "rb") as stream:
                    return stream.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise BadImage(f"{self.where(row)}: the image's file cannot be read: {error}.") from error
        raise BadImage(f"{self.where(row)}: '{image['path']}' is not among the files of the data set.")

    def chunks(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Encoded]]:
        for part in split_rows(rows, size):
            yield part, self

    def fingerprint(self) -> str:
        return f"hf-{self.data._fingerprint}-{self.column}"

    def random_access(self, cache_dir: Path) -> Encoded:
        return self
