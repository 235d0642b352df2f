"""load and load_pair: from a spec such as `parquet:PATH` to a Dataset, decoded where it fits."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.core.spec import near
from weathered.data.cache import materialise
from weathered.data.dataset import Dataset, MemoryInputs
from weathered.data.images import Layout
from weathered.data.labels import MissingColumn
from weathered.data.sources.folder import class_folders
from weathered.data.sources.options import ReadOptions
from weathered.data.sources.tables import same_columns
from weathered.data.splits import random_subset, stratified_split
from weathered.data.stream import StreamInputs

Reader = Callable[[str, ReadOptions], Dataset]

READERS = {
    "digits": "digits:read_digits",
    "folder": "folder:read_folder",
    "csv": "csv_file:read_csv",
    "parquet": "parquet:read_parquet",
    "npz": "npz:read_npz",
    "torchvision": "torchvision_files:read_torchvision",
    "hf": "hugging_face:read_hugging_face",
}
"""Source -> module and function, imported when asked for."""

HAVE_TEST_SPLIT = ("torchvision", "hf")


def load(
    spec: str,
    *,
    label_column: str | None = None,
    clean_column: str | None = None,
    skip_bad: bool = False,
    root: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    class_names: tuple[str, ...] | None = None,
    cache_dir: Path | None = None,
    memory_limit_bytes: int = 2 << 30,
) -> Dataset:
    """Read a data set. spec: `name[:rest]` or a path: digits, folder:PATH, csv:PATH, parquet:PATH, npz:PATH,
    torchvision:NAME[:test], hf:NAME[@CONFIG][:SPLIT].

    label_column: labels to use; by default label, labels, target, class or y. clean_column: becomes clean_labels.
    skip_bad: drop images that cannot be read and note their number. root: folder of torchvision's files.
    image_size: resize to this square, in pixels; without it all images must have one size.
    limit: at most this many rows, uniform over all rows without regard to classes, drawn from (seed, "limit"),
    in their original order. class_names: classes that the data must have, in this order.
    cache_dir: where decoded images are kept. memory_limit_bytes: larger image data stay undecoded and are streamed.
    Raises DataError in one sentence for anything missing, broken or that does not fit.
    """
    options = ReadOptions(label_column, clean_column, class_names, image_size, root, False, memory_limit_bytes)
    dataset = _read(spec, options)
    index = None if limit is None else random_subset(len(dataset), limit, seed)
    dataset = _note_limit(dataset, len(dataset), limit)
    return materialise(dataset, index, skip_bad=skip_bad, cache_dir=cache_dir, memory_limit_bytes=memory_limit_bytes)


def load_pair(
    spec: str,
    test_spec: str | None = None,
    *,
    label_column: str | None = None,
    test_label_column: str | None = None,
    clean_column: str | None = None,
    skip_bad: bool = False,
    root: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    test_fraction: float = 0.25,
    seed: int = 0,
    cache_dir: Path | None = None,
    memory_limit_bytes: int = 2 << 30,
) -> tuple[Dataset, Dataset]:
    """(training set, test set); for the arguments see `load`.

    Without test_spec, torchvision and hf give their own test split; from other sources `test_fraction` of each class
    is held out, drawn from (seed, "test split"). limit: training rows, drawn after the split, so that the test set
    does not depend on it. test_label_column: by default the training set's clean or label column where the test
    set has it, in this order, else its standard label column.
    Raises DataError naming the classes if they differ, if a class has no training row, or if shapes differ.
    """
    options = ReadOptions(label_column, clean_column, None, image_size, root, False, memory_limit_bytes)
    whole = _read(spec, options)
    name = parse_source(spec)[0]
    if test_spec is None and name not in HAVE_TEST_SPLIT:
        kept, held = stratified_split(whole.labels, test_fraction, generator(seed, "test split"))
        # one look at the whole, so that both parts agree on grey or colour
        _ = whole.inputs.shape
        test_source, note = whole, f"The test set is {len(held)} of {len(whole)} rows, the same share of each class."
    else:
        kept, held, note = torch.arange(len(whole)), None, None
        test_source = _read_test(test_spec or spec, whole, options, test_label_column, own_split=test_spec is None)
    _require_all_classes(whole, kept)
    chosen = kept[random_subset(len(kept), limit, seed)]
    everything = len(chosen) == len(whole)

    def finish(dataset: Dataset, index: torch.Tensor | None) -> Dataset:
        return materialise(
            dataset, index, skip_bad=skip_bad, cache_dir=cache_dir, memory_limit_bytes=memory_limit_bytes
        )

    whole = _note_limit(whole, len(kept), limit)
    train = finish(whole, None if everything else chosen)
    test = finish(_with_channels(test_source, train), held)
    if train.is_image and train.inputs.shape[0] < test.inputs.shape[0]:
        train = finish(_with_channels(whole, test), None if everything else chosen)
    if train.inputs.shape != test.inputs.shape:
        raise DataError(
            f"the training inputs are {train.inputs.shape}, the test inputs {test.inputs.shape}"
            + ("; pass --image-size to bring images to one size." if train.is_image else ".")
        )
    test = test.replace(name=f"{test.name} (test)", notes=(*test.notes, note) if note else test.notes)
    return train, test


def _read_test(spec: str, train: Dataset, options: ReadOptions, label_column: str | None, own_split: bool) -> Dataset:
    labelling = frozenset(c for c in (options.label_column, options.clean_column) if c is not None)
    base = replace(options, clean_column=None, class_names=train.class_names, test=own_split, not_features=labelling)

    def read(column: str | None) -> Dataset:
        return same_columns(_read(spec, replace(base, label_column=column)), train)

    if label_column is not None:
        return read(label_column)
    for column in dict.fromkeys((options.clean_column, options.label_column)):
        if column is not None:
            try:
                return read(column)
            except MissingColumn:
                continue
    return read(None)


def _with_channels(dataset: Dataset, other: Dataset) -> Dataset:
    """Grey images as three equal channels where those of the other set have colour."""
    if not (dataset.is_image and other.is_image and dataset.inputs.shape[0] == 1 and other.inputs.shape[0] == 3):
        return dataset
    inputs = dataset.inputs
    if isinstance(inputs, StreamInputs):
        layout = Layout(3, inputs.layout.height, inputs.layout.width)
        return dataset.replace(inputs=StreamInputs(inputs.encoded, inputs.rows, inputs.image_size, layout))
    return dataset.replace(inputs=MemoryInputs(inputs.fetch(torch.arange(len(dataset))).repeat(1, 3, 1, 1)))


def _note_limit(dataset: Dataset, size: int, limit: int | None) -> Dataset:
    if limit is None or limit >= size:
        return dataset
    return dataset.replace(notes=(*dataset.notes, f"{limit} of {size} rows were drawn at random."))


def _require_all_classes(dataset: Dataset, index: torch.Tensor) -> None:
    counts = torch.bincount(dataset.labels[index], minlength=dataset.num_classes)
    if int((counts > 0).sum()) < 2:
        raise DataError(f"{dataset.name}: training needs at least two classes, all rows have the same label.")
    if (counts == 0).any():
        empty = dataset.class_names[int((counts == 0).nonzero()[0])]
        raise DataError(f"{dataset.name}: the class '{empty}' has no row; remove it from the class names.")


def _read(spec: str, options: ReadOptions) -> Dataset:
    name, rest = parse_source(spec)
    module, _, function = READERS[name].partition(":")
    reader: Reader = getattr(importlib.import_module(f"weathered.data.sources.{module}"), function)
    dataset = reader(rest, options)
    if not len(dataset):
        raise DataError(f"{spec}: there are no rows.")
    if options.image_size is not None and isinstance(dataset.inputs, MemoryInputs) and dataset.is_image:
        dataset = dataset.replace(inputs=MemoryInputs(resized(dataset.inputs.tensor, options.image_size)))
    return dataset


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """(N, C, H, W) uint8 to (N, C, size, size): the centre square, scaled with antialiasing."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side].float()
    scaled = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def parse_source(spec: str) -> tuple[str, str]:
    """(source, rest) of a spec or a bare path. Raises DataError with a suggestion."""
    name, colon, rest = spec.partition(":")
    if name in READERS:
        return name, rest
    path = Path(spec).expanduser()
    if path.is_dir():
        if class_folders(path):
            return "folder", spec
        raise DataError(f"{path}: expected one folder per class, found none.")
    suffix = path.suffix.lower().removeprefix(".")
    if path.exists():
        if suffix in ("csv", "parquet", "npz"):
            return suffix, spec
        raise DataError(f"{path}: expected a folder of class folders, or a file .csv, .parquet or .npz.")
    known = ", ".join(READERS)
    if colon or not ("/" in spec or suffix):
        raise DataError(f"there is no data source '{name}'.{near(name, READERS)} The sources are: {known}, or a path.")
    raise DataError(f"{path}: there is no such file or folder.")
