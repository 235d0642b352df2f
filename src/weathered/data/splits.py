"""Random subsets and stratified splits, each from a generator of its own name."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset


def random_subset(size: int, limit: int | None, seed: int) -> Int[Tensor, "M"]:
    """At most `limit` of `size` positions, uniform without regard to classes, ascending.

    All positions when limit is None or not smaller than size. Raises DataError if limit < 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"the limit must be at least 1, got {limit}.")
    if limit is None or limit >= size:
        return torch.arange(size)
    return torch.randperm(size, generator=generator(seed, "limit"))[:limit].sort().values


def stratified_split(
    labels: Int[Tensor, "N"], fraction: float, rng: torch.Generator
) -> tuple[Int[Tensor, "M"], Int[Tensor, "K"]]:
    """Positions kept and positions held out, ascending; of a class with n samples round(fraction * n) are held out.

    labels (N,) >= 0. fraction in (0, 1). A class with two or more samples has at least one on each side, a single
    sample is kept.
    Raises ValueError if fraction is out of range, DataError if a side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the fraction held out must be in (0, 1), got {fraction}")
    shuffled = torch.randperm(len(labels), generator=rng)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts
    grouped = labels[order]
    rank = torch.arange(len(labels)) - first[grouped]
    held = (fraction * counts.double()).round().long()
    held = torch.minimum(held.clamp_min(1), (counts - 1).clamp_min(0))
    out = rank < held[grouped]
    if not out.any() or out.all():
        raise DataError(
            f"no class has two of the samples, {len(labels)} in all, so none can be held out; give more, or name "
            "a test set with --test."
        )
    return order[~out].sort().values, order[out].sort().values


def class_listing(names: Sequence[str]) -> str:
    """Up to five class names in words: "the class 'a'", "the classes 'a', 'b' and 7 more"."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the class{'es' * (len(names) > 1)} " + ", ".join(f"'{name}'" for name in names[:5]) + more


def single_rows_note(dataset: Dataset, held: Int[Tensor, "K"], part: str, remedy: str) -> str | None:
    """Which classes have rows but none held out, since a single row is kept for training; None if there are none.

    held (K,): positions held out. part, remedy: how the note calls them and what can be done.
    """
    if dataset.is_segmentation:
        # split by the class of most pixels, so that rare classes are on either side by chance
        return None
    count = torch.bincount(dataset.labels[held], minlength=dataset.num_classes)
    absent = ((count == 0) & (dataset.class_counts > 0)).nonzero()[:, 0]
    if not len(absent):
        return None
    listing = class_listing([dataset.class_names[int(c)] for c in absent])
    return f"The {part} holds no row of {listing}: a single row is kept for training; {remedy}, or drop the class."


def validation_split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training part, validation part), stratified by label and drawn from (seed, "validation split").

    fraction in (0, 1): share of each class that is held out. Raises ValueError if it is out of range.
    """
    kept, held = stratified_split(dataset.labels, fraction, generator(seed, "validation split"))
    note = f"A validation set of {len(held)} rows was split off."
    missing = single_rows_note(dataset, held, "validation set", "add rows")
    train = dataset.select(kept, note)
    train = train.replace(notes=(*train.notes, missing)) if missing else train
    return train, dataset.select(held).replace(name=f"{dataset.name} (validation)")


def stratified_folds(labels: Int[Tensor, "N"], folds: int, rng: torch.Generator) -> Int[Tensor, "N"]:
    """The fold (N,) in [0, folds) of each row; class counts of any two folds differ by at most 1, and so do sizes.

    labels (N,) >= 0. rng: a generator on the CPU. With rows shuffled and put in order of class, the folds take turns.
    Raises ValueError unless 2 <= folds <= N.
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds must be in [2, {len(labels)}], the number of rows, got {folds}")
    shuffled = torch.randperm(len(labels), generator=rng)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.empty(len(labels), dtype=torch.int64)
    fold[order] = torch.arange(len(labels)) % folds
    return fold


def refuse_single_samples(labels: Int[Tensor, "N"], class_names: Sequence[str]) -> None:
    """Raise DataError, naming the class, unless each class has the two samples that folds need."""
    counts = torch.bincount(labels, minlength=len(class_names))
    if len(counts) and int(counts.min()) < 2:
        rare = int(counts.argmin())
        samples = f"{int(counts[rare])} sample{'s' if counts[rare] != 1 else ''}"
        raise DataError(
            f"Class '{class_names[rare]}' has {samples}, but each class needs at least 2 for a model to learn it while "
            "one is held out: leave the class out, or merge it with another."
        )


def fold_split(dataset: Dataset, number: int, folds: int, seed: int) -> tuple[Dataset, Dataset]:
    """(all other folds, the fold `number`) of a training set, drawn from (seed, "folds").

    Raises DataError if a class has a single sample or there are fewer rows than folds.
    """
    if not dataset.is_segmentation:
        refuse_single_samples(dataset.labels, dataset.class_names)
    if folds > len(dataset):
        raise DataError(f"{dataset.name}: {len(dataset)} rows cannot be parted into {folds} folds.")
    held = stratified_folds(dataset.labels, folds, generator(seed, "folds")) == number
    train = dataset.select(~held, f"Fold {number + 1} of {folds}, {int(held.sum())} rows, is held out as the test set.")
    return train, dataset.select(held).replace(name=f"{dataset.name} (fold {number + 1} of {folds})")
