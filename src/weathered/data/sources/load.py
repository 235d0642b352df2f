"""load and load_pair: from a spec such as `parquet:PATH` to a Dataset, decoded where it fits."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.core.spec import near
from weathered.data.cache import materialise
from weathered.data.dataset import Dataset, MemoryInputs
from weathered.data.images import Layout
from weathered.data.labels import MissingColumn
from weathered.data.resize import resized
from weathered.data.sources.columns import aside, captions_of, chosen_rows, groups_of, with_columns
from weathered.data.sources.folder import class_folders
from weathered.data.sources.options import ReadOptions, user_path
from weathered.data.sources.tables import TableInputs, same_columns
from weathered.data.splits import class_listing, random_subset, single_rows_note, stratified_split
from weathered.data.stream import StreamInputs

Reader = Callable[[str, ReadOptions], Dataset]

READERS = {
    "digits": "digits:read_digits",
    "folder": "folder:read_folder",
    "images": "folder:read_images",
    "csv": "csv_file:read_csv",
    "parquet": "parquet:read_parquet",
    "npz": "npz:read_npz",
    "torchvision": "torchvision_files:read_torchvision",
    "hf": "hugging_face:read_hugging_face",
    "segmentation": "segmentation:read_segmentation",
    "shapes": "shapes:read_shapes",
    "captions": "captions:read_captions",
    "domains": "domains:read_domains",
    "clips": "clips:read_clips",
    "clip-folder": "clip_folder:read_clip_folder",
}
"""Source -> module and function, imported when asked for."""


def load(
    spec: str,
    *,
    label_column: str | None = None,
    clean_column: str | None = None,
    mask_column: str | None = None,
    ignore_label: int | None = None,
    group_column: str | None = None,
    caption_column: str | None = None,
    rows: str | None = None,
    skip_bad: bool = False,
    root: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    class_names: tuple[str, ...] | None = None,
    cache_dir: Path | None = None,
    memory_limit_bytes: int = 2 << 30,
) -> Dataset:
    """Read a data set. spec: `name[:rest]` or a path: digits, folder:PATH, csv:PATH, parquet:PATH, npz:PATH[:PART],
    torchvision:NAME[:test], hf:NAME[@CONFIG][:SPLIT], images:PATH (all images below a folder, without classes),
    segmentation:PATH (folders images and masks), shapes:N (generated images with masks), captions:N
    (generated images with captions), domains:N (a generated table of several domains), clips:N (generated video clips),
    clip-folder:PATH[:frames=T] (clips as folders of frames or animated files, by class).
    Where parts are known and none is named, the training part.

    label_column: labels to use; by default label, labels, target, class or y. clean_column: becomes clean_labels.
    mask_column: masks in place of labels, the class of each pixel; ignore_label: value of pixels without a class,
    besides 255. group_column: the group of each row, as `extra["group"]` and `group_names`. rows: those where a column
    has a value, as in split=train. caption_column: the caption of each image, as word ids in `extra["caption"]`.
    skip_bad: drop images that cannot be read and note their number. root: folder of torchvision's files.
    image_size: resize to this square, in pixels; without it all images must have one size.
    limit: at most this many rows, uniform over all rows without regard to classes, drawn from (seed, "limit"),
    in their original order. class_names: classes that the data must have, in this order.
    cache_dir: where decoded images are kept. memory_limit_bytes: larger image data stay undecoded and are streamed.
    Raises DataError in one sentence for anything missing, broken or that does not fit.
    """
    options = ReadOptions(
        label_column, clean_column, class_names, image_size, root, False, memory_limit_bytes,
        mask_column=mask_column, ignore_label=ignore_label, skip_bad=skip_bad, group_column=group_column, rows=rows,
        caption_column=caption_column,
    )  # fmt: skip
    dataset = read_source(spec, options)
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
    mask_column: str | None = None,
    ignore_label: int | None = None,
    group_column: str | None = None,
    caption_column: str | None = None,
    rows: str | None = None,
    test_rows: str | None = None,
    skip_bad: bool = False,
    root: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    test_fraction: float = 0.25,
    seed: int = 0,
    not_features: tuple[str, ...] = (),
    unlabelled_test: bool = False,
    cache_dir: Path | None = None,
    memory_limit_bytes: int = 2 << 30,
) -> tuple[Dataset, Dataset]:
    """(training set, test set); for the arguments see `load`.

    Without test_spec, torchvision, hf, domains and an npz file with test arrays give their own test split, unless
    `spec` names a split; otherwise `test_fraction` of each class is held out, drawn from (seed, "test split"). A source
    named as test_spec gives its test split where it has one. A note of the training set names classes without rows in
    one of the sets, as happens to the test set where a class has a single row. limit: training rows, drawn after the
    split, so that the test set does not depend on it. test_label_column: by default the training set's clean or label
    column where the test set has it, in this order, else its standard label column. not_features: columns of a table
    that are left out, such as names of rows or labels of several people. test_rows: of the test set, or of the same
    source where none is named, as in split=test. unlabelled_test: a test table without label column has labels 0.
    Raises DataError naming the classes if they differ, if a class has no training row, or if shapes differ.
    """
    options = ReadOptions(
        label_column, clean_column, None, image_size, root, False, memory_limit_bytes, left_out=not_features,
        mask_column=mask_column, ignore_label=ignore_label, skip_bad=skip_bad, group_column=group_column, rows=rows,
        caption_column=caption_column,
    )  # fmt: skip
    if test_rows is not None and test_spec is None:
        if rows is None:
            raise DataError(
                f"{spec}: test rows from the training file need --rows as well, as in --rows split=train --test-rows "
                "split=test, or they would be trained on."
            )
        test_spec = spec
    whole = read_source(spec, options)
    if not_features and not isinstance(whole.inputs, TableInputs):
        raise DataError(f"{spec}: is no table with named columns, so there are no features to leave out.")
    missing = None
    if test_spec is None and not has_own_test(spec):
        kept, held = stratified_split(whole.labels, test_fraction, generator(seed, "test split"))
        # one look at the whole, so that both parts agree on grey or colour
        _ = whole.inputs.shape
        test_source, note = whole, f"The test set is {len(held)} of {len(whole)} rows, the same share of each class."
        missing = single_rows_note(whole, held, "test set", "name a test set with --test")
    else:
        kept, held, note = torch.arange(len(whole)), None, None
        test_options = replace(
            options, rows=test_rows, group_names=whole.group_names, aside=aside(options), words=whole.words,
            unlabelled=unlabelled_test,
        )  # fmt: skip
        test_source = _read_test(test_spec or spec, whole, test_options, test_label_column)
        if test_source.group_names:
            whole = whole.replace(group_names=test_source.group_names)
        if test_spec == spec and rows is not None and test_rows is not None:
            shared = np.intersect1d(whole.rows_in_source.numpy(), test_source.rows_in_source.numpy())
            if len(shared):
                raise DataError(f"{spec}: {len(shared)} rows have {rows} and {test_rows}; no row may be in both sets.")
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
    dropped = [f"Of the test set: {note}" for note in test.notes[len(test_source.notes) :]]
    if train.is_image and train.inputs.shape[0] < test.inputs.shape[0]:
        train = finish(_with_channels(whole, test), None if everything else chosen)
    if train.inputs.shape != test.inputs.shape:
        raise DataError(
            f"the training inputs are {train.inputs.shape}, the test inputs {test.inputs.shape}"
            + ("; pass --image-size to bring images to one size." if train.is_image else ".")
        )
    absent = missing or _empty_classes_note(test, "test")
    gaps = (_empty_classes_note(train, "training"), absent, _new_groups_note(train, test))
    train = train.replace(notes=(*train.notes, *dropped, *(gap for gap in gaps if gap)))
    return train, test.replace(name=f"{test.name} (test)", notes=(*test.notes, note) if note else test.notes)


def has_own_test(spec: str) -> bool:
    """Whether a source brings its own test split and no split was named in the spec."""
    name, rest = parse_source(spec)
    if name == "npz":
        from weathered.data.sources.npz import has_test_part

        return has_test_part(rest)
    return name == "domains" or (name in ("torchvision", "hf") and ":" not in rest)


def _read_test(spec: str, train: Dataset, options: ReadOptions, label_column: str | None) -> Dataset:
    labelling = frozenset(c for c in (options.label_column, options.clean_column) if c is not None)
    base = replace(options, clean_column=None, class_names=train.class_names, test=True, not_features=labelling)

    def read(column: str | None) -> Dataset:
        return same_columns(read_source(spec, replace(base, label_column=column)), train)

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


def _empty_classes_note(dataset: Dataset, part: str) -> str | None:
    """A limit, unreadable images or a test set of its own may leave classes without rows."""
    empty = [dataset.class_names[int(c)] for c in (dataset.class_counts == 0).nonzero()[:, 0]]
    return f"The {part} set holds no row of {class_listing(empty)}." if empty else None


def _new_groups_note(train: Dataset, test: Dataset) -> str | None:
    """Rows are parted by class, so that all rows of a small group may be among those held out."""
    if not (train.group_names and len(train) and len(test) and "group" in train.extra and "group" in test.extra):
        return None
    new = sorted(set(test.extra["group"].tolist()) - set(train.extra["group"].tolist()))
    names = ", ".join(f"'{train.group_names[code]}'" for code in new[:5])
    return f"Groups that only the test set has, so that nothing was learnt of them: {names}." if new else None


def _require_all_classes(dataset: Dataset, index: torch.Tensor) -> None:
    counts = dataset.select(index).class_counts
    # captions are learned from without classes
    if int((counts > 0).sum()) < 2 and not dataset.is_captioned:
        why = (
            "all pixels that have a class have the same" if dataset.is_segmentation else "all rows have the same label"
        )
        more = "; the value 255 marks pixels without one" if dataset.is_segmentation else ""
        raise DataError(f"{dataset.name}: training needs at least two classes, {why}{more}.")
    if (counts == 0).any() and not dataset.is_segmentation:
        empty = dataset.class_names[int((counts == 0).nonzero()[0])]
        raise DataError(f"{dataset.name}: the class '{empty}' has no row; remove it from the class names.")


def read_source(spec: str, options: ReadOptions) -> Dataset:
    """A source as its reader gives it, with the columns that say something of rows; images are not decoded yet."""
    name, rest = parse_source(spec)
    module, _, function = READERS[name].partition(":")
    reader: Reader = getattr(importlib.import_module(f"weathered.data.sources.{module}"), function)
    options = replace(options, aside=aside(options), chosen=chosen_rows(name, rest, options))
    groups, captions = groups_of(name, rest, options), captions_of(name, rest, options)
    dataset = reader(rest, options)
    if not len(dataset):
        raise DataError(f"{spec}: there are no rows.")
    if options.ignore_label is not None and not dataset.is_segmentation:
        raise DataError(f"{spec}: --ignore-label names a value of masks, but these data have none.")
    if options.image_size is not None:
        dataset = resized(dataset, options.image_size)
    if dataset.source_rows is None:
        dataset = dataset.replace(source_rows=torch.arange(len(dataset)))
    return with_columns(dataset, groups, captions, options, rest or name)


def parse_source(spec: str) -> tuple[str, str]:
    """(source, rest) of a spec or a bare path. Raises DataError with a suggestion."""
    name, colon, rest = spec.partition(":")
    known = ", ".join(READERS)
    if name in READERS:
        return name, rest
    if not spec.strip():
        raise DataError(f"the name of the data is empty. The sources are: {known}, or a path.")
    path = user_path(spec)
    suffix = path.suffix.lower().removeprefix(".")
    try:
        if path.is_dir():
            if all((path / part).is_dir() for part in ("images", "masks")):
                return "segmentation", spec
            if class_folders(path):
                return "folder", spec
            raise DataError(f"{path}: expected one folder per class, found none.")
        if path.exists():
            if suffix in ("csv", "parquet", "npz"):
                return suffix, spec
            raise DataError(f"{path}: expected a folder of class folders, or a file .csv, .parquet or .npz.")
    except OSError as error:
        raise DataError(f"{path}: the path cannot be read: {error.strerror}.") from error
    if colon or not ("/" in spec or suffix):
        raise DataError(f"there is no data source '{name}'.{near(name, READERS)} The sources are: {known}, or a path.")
    raise DataError(f"{path}: there is no such file or folder.")
