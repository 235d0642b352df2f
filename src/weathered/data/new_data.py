"""Data that a finished run has never met, read so that its model takes them: with labels where they have the run's."""

from pathlib import Path

import torch

from weathered.core.errors import DataError
from weathered.data.auxiliary import load_auxiliary
from weathered.data.dataset import Dataset
from weathered.data.labels import MissingColumn
from weathered.data.sources import load_pair
from weathered.recipe import Recipe


def load_new(recipe: Recipe, spec: str, like: Dataset, limit: int | None = None) -> tuple[Dataset, bool]:
    """(data, whether their labels are classes of the run) from a source, read as the run read its test set.

    like: a data set of the run. limit: at most so many rows, drawn at random. Images of other classes, or of none, are
    read without labels, as are tables that lack the label column; labels are 0 then.
    Raises DataError where the source is missing, empty, or of another kind than `like`.
    """
    data = _read(recipe, spec, like)
    found, labelled = data
    if not len(found):
        raise DataError(f"{spec}: there are no rows.")
    if limit is not None and limit < len(found):
        rng = torch.Generator().manual_seed(recipe.data_seed)
        found = found.select(torch.randperm(len(found), generator=rng)[:limit].sort().values)
    return found, labelled


def _read(recipe: Recipe, spec: str, like: Dataset) -> tuple[Dataset, bool]:
    try:
        return _pair(recipe, spec, unlabelled=False), True
    except MissingColumn:
        if not like.is_image:
            return _pair(recipe, spec, unlabelled=True), False
    except DataError:
        if not like.is_image:
            raise
    options = recipe.data
    root = Path(options.root) if options.root else None
    return load_auxiliary(spec, like, recipe.data_seed, root=root, skip_bad=options.skip_bad), False


def _pair(recipe: Recipe, spec: str, unlabelled: bool) -> Dataset:
    options = recipe.data
    _, found = load_pair(
        options.train,
        spec,
        label_column=options.label_column,
        test_label_column=options.test_label_column,
        clean_column=options.clean_column,
        skip_bad=options.skip_bad,
        root=Path(options.root) if options.root else None,
        image_size=options.image_size,
        not_features=options.not_features,
        unlabelled_test=unlabelled,
    )
    return found
