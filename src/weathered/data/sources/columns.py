"""Columns of a csv or parquet file besides inputs and labels: the groups of rows, and which rows are taken."""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from weathered.core.errors import DataError
from weathered.core.spec import near
from weathered.core.tokens import CAPTION, WordTokeniser, words_of
from weathered.data.dataset import Dataset
from weathered.data.labels import MissingColumn
from weathered.data.sources.options import ReadOptions, of_chosen

TEXT_READERS = {"csv": "csv_file:read_text_column", "parquet": "parquet:read_text_column"}


def parse_rows(text: str) -> tuple[str, str]:
    """(column, value) of `split=train`. Raises DataError for anything else."""
    column, sign, value = text.partition("=")
    if not (sign and column.strip() and value.strip()):
        raise DataError(f"rows are chosen as in split=train, by a column and its value, got '{text}'.")
    return column.strip(), value.strip()


def aside(options: ReadOptions) -> frozenset[str]:
    """The columns that say something of rows and so are no features."""
    chosen = {
        options.group_column,
        options.caption_column,
        options.rows and parse_rows(options.rows)[0],
        *options.aside,
    }
    return frozenset(column for column in chosen if column)


def chosen_rows(source: str, rest: str, options: ReadOptions) -> np.ndarray | None:
    """Which rows were asked for, (N,) bool; None for all. Raises DataError if no row has the value."""
    if options.rows is None:
        return None
    column, wanted = parse_rows(options.rows)
    values = _text_column(source, rest, column)
    chosen = np.array([value == wanted for value in values], dtype=bool)
    if not chosen.any():
        known = sorted(set(values), key=_by_number)
        listing = ", ".join(f"'{value}'" for value in known[:10]) + (", ..." if len(known) > 10 else "")
        raise DataError(f"{rest}: no row has {column}={wanted}.{near(wanted, known)} It holds {listing}.")
    return chosen


def groups_of(source: str, rest: str, options: ReadOptions) -> list[str] | None:
    """The group of each row as text, None without a group column. Raises DataError for a column that is not there."""
    return None if options.group_column is None else _text_column(source, rest, options.group_column)


def captions_of(source: str, rest: str, options: ReadOptions) -> list[str] | None:
    """The caption of each row, None without a caption column. Raises DataError for a column that is not there."""
    return None if options.caption_column is None else _text_column(source, rest, options.caption_column)


def with_columns(
    dataset: Dataset, groups: list[str] | None, captions: list[str] | None, options: ReadOptions, name: str
) -> Dataset:
    """The data set with `group` and `group_names` from the groups, captions as word ids, and the rows asked for.

    Groups are numbered in sorted order of their names, numbers before text; those of the training set keep theirs.
    Words get their ids the same way. name: of the source, for errors. Raises DataError for a group or a caption that
    is missing.
    """
    if captions is not None:
        dataset = _captioned(dataset, of_chosen(captions, options), options, name)
    if groups is not None:
        values = of_chosen(groups, options)
        empty = next((row for row, value in enumerate(values) if not value), None)
        if empty is not None:
            raise DataError(
                f"{name}: the group in column '{options.group_column}' is missing in row {empty}; fill it in, "
                "or drop the row."
            )
        kept = [str(values[row]) for row in dataset.rows_in_source.tolist()]
        dataset = with_groups(dataset, kept, options.group_names)
    elif "group" in dataset.extra and not dataset.group_names:
        dataset = _numbered(dataset, options.group_names)
    if options.chosen is None:
        return dataset
    note = f"The {int(options.chosen.sum())} of {len(options.chosen)} rows with {options.rows}."
    return dataset.select(torch.from_numpy(options.chosen)[dataset.rows_in_source], note)


def with_groups(dataset: Dataset, values: Sequence[str], known: tuple[str, ...]) -> Dataset:
    """The data set with the group of each row; names are sorted, numbers before text, after those that are known."""
    names = (*known, *sorted(set(values) - set(known), key=_by_number))
    codes = {name: code for code, name in enumerate(names)}
    numbers = torch.tensor([codes[value] for value in values], dtype=torch.int64)
    return dataset.replace(extra={**dataset.extra, "group": numbers}, group_names=names)


def with_captions(dataset: Dataset, captions: Sequence[str], tokeniser: WordTokeniser) -> Dataset:
    """The data set with its captions as word ids, and the words."""
    return dataset.replace(extra={**dataset.extra, CAPTION: tokeniser.encode(captions)}, words=tokeniser.words)


def _captioned(dataset: Dataset, captions: Sequence[str], options: ReadOptions, name: str) -> Dataset:
    """Words of a test set that the training set does not hold are unknown."""
    if not dataset.is_image:
        raise DataError(f"{name}: captions belong to images, but the data are {dataset.kind}.")
    kept = [str(captions[row]) for row in dataset.rows_in_source.tolist()]
    empty = next((row for row, text in enumerate(kept) if not words_of(text)), None)
    if empty is not None:
        raise DataError(
            f"{name}: the caption in column '{options.caption_column}' has no word in row "
            f"{int(dataset.rows_in_source[empty])}; fill it in, or drop the row."
        )
    return with_captions(dataset, kept, WordTokeniser(options.words) if options.words else WordTokeniser.fit(kept))


def _numbered(dataset: Dataset, known: tuple[str, ...]) -> Dataset:
    """Groups that came with the data as whole numbers, numbered anew; a column of nearly as many values as rows, or of
    several numbers each, is no group.
    """
    values = dataset.extra["group"]
    distinct = values.unique() if values.ndim == 1 else values.new_zeros(len(dataset))
    if 2 * len(distinct) > len(dataset):
        return dataset.replace(extra={name: column for name, column in dataset.extra.items() if name != "group"})
    names = (*known, *(str(value) for value in distinct.tolist() if str(value) not in known))
    place = {name: code for code, name in enumerate(names)}
    codes = torch.tensor([place[str(value)] for value in distinct.tolist()], dtype=torch.int64)
    groups = codes[torch.searchsorted(distinct, values)]
    return dataset.replace(extra={**dataset.extra, "group": groups}, group_names=names)


def _by_number(text: str) -> tuple[int, float, str]:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return (0, number, text) if math.isfinite(number) else (1, 0.0, text)


def _text_column(source: str, rest: str, column: str) -> list[str]:
    if source not in TEXT_READERS:
        raise DataError(
            f"{source} data have no columns to choose rows, groups or captions by; csv and parquet files have, and npz "
            "files give groups as whole numbers or text in an array 'group'."
        )
    module, _, function = TEXT_READERS[source].partition(":")
    try:
        return getattr(importlib.import_module(f"weathered.data.sources.{module}"), function)(rest, column)
    except MissingColumn as error:
        # a missing label column makes others be tried, this one does not
        raise DataError(str(error)) from error


def as_texts(values: Sequence[object], column: str, where: str | Path) -> list[str]:
    """Whole numbers, truth values and text as text, missing ones as ''. Raises DataError for anything else."""
    texts = []
    for row, value in enumerate(values):
        if value is None or value != value:
            texts.append("")
        elif isinstance(value, (bool, int, str)):
            texts.append(str(value).strip())
        elif isinstance(value, float) and value.is_integer():
            texts.append(str(int(value)))
        else:
            raise DataError(
                f"{where}: column '{column}' must hold text or whole numbers to choose by, row {row} holds {value!r}."
            )
    return texts
