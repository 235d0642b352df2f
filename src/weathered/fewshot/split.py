"""Base and novel classes of a recipe: some classes train the network, all rows of the others wait for episodes.

Which classes are novel is drawn from the data seed. The split comes before data makers, and goes by the true label
where one is known, so that label noise never brings an image of a novel class among the training data. Rows of novel
classes are taken from the training and the test set, since neither has been trained on.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.fewshot.episodes import EpisodeOptions


class FewShotSplit(NamedTuple):
    """Training and test set of the base classes, renumbered from 0, and the rows of novel classes, in two parts."""

    train: Dataset
    test: Dataset
    novel: tuple[Dataset, Dataset]


def class_split(num_classes: int, options: EpisodeOptions, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the base and of the novel classes, ascending, drawn from the data seed.

    Raises SpecError unless there are 2 base classes and `ways` novel ones.
    """
    base = max(2, num_classes // 2) if options.base_classes is None else options.base_classes
    if base < 2 or num_classes - base < options.ways:
        raise SpecError(
            f"{options.ways}-way episodes of {num_classes} classes need base_classes in "
            f"[2, {num_classes - options.ways}], got {base}; change --base-classes or --ways."
            if num_classes - options.ways >= 2
            else f"{options.ways}-way episodes need {options.ways} novel and 2 base classes, but there are "
            f"{num_classes} classes in all; lower --ways."
        )
    order = torch.randperm(num_classes, generator=generator(seed, "few-shot classes"))
    return order[:base].sort().values, order[base:].sort().values


def few_shot_split(train: Dataset, test: Dataset, options: EpisodeOptions, seed: int, method: str) -> FewShotSplit:
    """Split a training and a test set by class. method: its name, for messages.

    Raises Incompatible for labels of pixels, SpecError for too few classes, DataError for a novel class with too few
    rows for an episode.
    """
    if train.is_segmentation:
        raise Incompatible(
            f"{method} works on one label for each sample, but these data have one for each pixel. Remove it, or use "
            "classification data."
        )
    base, novel = class_split(train.num_classes, options, seed)
    parts = tuple(_of_classes(data, novel, by_truth=True) for data in (train, test))
    _check_rows(parts, options)
    kept = [_of_classes(data, base, by_truth=False) for data in (train, test)]
    left = len(train) - len(kept[0]) - len(parts[0])
    note = (
        f"Few-shot: {len(base)} of {train.num_classes} classes are trained on; all {sum(map(len, parts))} rows of the "
        f"{len(novel)} others, of training and test set, are kept for episodes."
    )
    note += f" {left} rows whose given and true label lie on either side were left out." if left else ""
    return FewShotSplit(kept[0].replace(notes=(*kept[0].notes, note)), kept[1], (parts[0], parts[1]))


def _of_classes(data: Dataset, classes: Tensor, by_truth: bool) -> Dataset:
    """The rows of these classes, renumbered in their order.

    by_truth: by the true label where it is known, which becomes the label; otherwise rows whose given label is of
    these classes and whose true one, where it is known, is of no other.
    """
    number = torch.full((data.num_classes + 1,), -1)
    number[classes] = torch.arange(len(classes))
    truth = data.labels if data.clean_labels is None else data.clean_labels
    # -1, no class is right, finds the last entry
    label, true = number[data.labels], number[truth]
    wanted = (true >= 0) if by_truth else (label >= 0) & ((true >= 0) | (truth < 0))
    rows = data.select(wanted)
    return rows.replace(
        labels=(true if by_truth else label)[wanted],
        clean_labels=None if by_truth or data.clean_labels is None else true[wanted],
        class_names=tuple(data.class_names[c] for c in classes.tolist()),
    )


def _check_rows(parts: tuple[Dataset, ...], options: EpisodeOptions) -> None:
    counts = sum((part.class_counts for part in parts), torch.zeros_like(parts[0].class_counts))
    taken = max(options.shots) + options.queries
    least = int(counts.argmin())
    if int(counts[least]) < taken:
        others = int((counts < taken).sum()) - 1
        more = f", and {others} more have fewer than {taken}" if others else ""
        raise DataError(
            f"an episode takes {taken} rows of a novel class, {max(options.shots)} as support and {options.queries} as "
            f"queries, but class '{parts[0].class_names[least]}' has {int(counts[least])}{more}; lower --queries or "
            "--shots, leave out such classes, or raise --limit where it cut them."
        )
