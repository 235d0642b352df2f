"""Data preparation that claims share."""

import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.makers.long_tail import long_tail_counts
from weathered.data.sources.load import load
from weathered.nn.heads import build_head
from weathered.nn.network import Network, TableNetwork, seeded


def split_digits(slug: str, seed: int, train: int) -> tuple[Dataset, Dataset]:
    """scikit-learn's 1,797 digits, 1x8x8, split at random into `train` rows and the rest; drawn from (seed, slug)."""
    digits = load("digits")
    rows = torch.randperm(len(digits), generator=generator(seed, "claim", slug))
    return digits.select(rows[:train]), digits.select(rows[train:])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is the label's, in [0, 1]. logits (N, C), labels (N,)."""
    return float((logits.argmax(1) == labels).double().mean())


MEMORISED = "share of the wrongly labelled training images predicted as their wrong label, in [0, 1], lower is better"


def memorised(logits: Tensor, noisy: Dataset) -> float:
    """Share of rows with a wrong label whose largest logit is that label's, in [0, 1]. logits (N, C).

    noisy: rows with labels and clean labels, some of them different. Raises ValueError where none is wrong.
    """
    if noisy.clean_labels is None or not bool((wrong := noisy.labels != noisy.clean_labels).any()):
        raise ValueError("memorised labels can be counted only where some labels are known to be wrong")
    return accuracy(logits[wrong], noisy.labels[wrong])


class LateDrop(Settings):
    """Settings whose learning rate falls to a tenth for the last fifth of training."""

    def learning_rate(self, progress: float, step: float = 0.0) -> float:
        return self.lr if progress < 0.8 else self.lr / 10


class Perceptron(nn.Module):
    """Hidden layers of the given widths with ReLU, on inputs (B, ...) taken as one row; features (B, last width)."""

    def __init__(self, inputs: int, widths: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise((inputs, *widths)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.num_features = widths[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x


def perceptron(
    dataset: Dataset, widths: Sequence[int], head: str = "linear", kaiming: bool = False
) -> Callable[[int], Network]:
    """A function seed -> network of hidden layers and a head, `linear` or `cosine`, that takes inputs as they are.

    kaiming: draw the weights of linear layers from a normal distribution of variance 2 / inputs (He et al., 2015).
    """
    shape = dataset.inputs.shape
    statistics = torch.zeros(shape[0]), torch.ones(shape[0])
    kind = Network if dataset.is_image else TableNetwork

    def build(seed: int) -> Network:
        with seeded(seed):
            body = Perceptron(math.prod(shape), widths)
            network = kind(body, build_head(head, widths[-1], dataset.num_classes), *statistics)
            for module in network.modules():
                if kaiming and isinstance(module, nn.Linear):
                    nn.init.kaiming_normal_(module.weight)
            return network

    return build


def noisy_pixel_rows(slug: str, seed: int, counts: Tensor, test: int) -> tuple[Dataset, Dataset]:
    """Digits as rows of 64 pixels in [0, 1] plus Gaussian noise of deviation 0.3, drawn from (seed, slug).

    counts (10,): training rows of each class. test: test rows of each class, disjoint from these.
    """
    digits, rng = load("digits"), generator(seed, "claim", slug)
    shuffled = torch.randperm(len(digits), generator=rng)
    train_rows, test_rows = [], []
    for label, count in enumerate(counts.tolist()):
        rows = shuffled[digits.labels[shuffled] == label]
        test_rows.append(rows[:test])
        train_rows.append(rows[test : test + count])
    pixels = digits.floats(torch.arange(len(digits))).flatten(1)
    blurred = pixels + 0.3 * torch.randn(pixels.shape, generator=rng)
    table = Dataset.of(blurred, digits.labels, digits.class_names, name="digits with noisy pixels")
    return table.select(torch.cat(train_rows)), table.select(torch.cat(test_rows))


class LongTail(NamedTuple):
    """Rows whose classes differ in size by a factor of 50. counts (10,): training rows of each class.

    validation: as many rows of each class, disjoint from the others, or None.
    """

    counts: Tensor
    train: Dataset
    validation: Dataset | None
    test: Dataset


LONG_TAIL = (
    "scikit-learn digits with Gaussian pixel noise of 0.3, 100 to 2 train images of the classes in random order, "
    "60 test images of each class"
)
RAREST = "accuracy on the three rarest classes, in [0, 1]"


def long_tailed_digits(slug: str, seed: int, validation: int = 0) -> LongTail:
    """What `LONG_TAIL` says, drawn from (seed, slug). validation: rows of each class that are held out besides."""
    rank = torch.randperm(10, generator=generator(seed, "rank", slug))
    counts = long_tail_counts(torch.full((10,), 100), 50, "exp")[rank]
    train, held = noisy_pixel_rows(slug, seed, counts, test=60 + validation)
    if not validation:
        return LongTail(counts, train, None, held)
    place = torch.arange(len(held)) % (60 + validation)
    return LongTail(counts, train, held.select(place >= 60), held.select(place < 60))


def rarest_accuracy(logits: Tensor, labels: Tensor, counts: Tensor) -> float:
    """Accuracy on the rows of the three classes with the fewest training rows, in [0, 1]. logits (N, C)."""
    rare = torch.isin(labels, counts.argsort(stable=True)[:3])
    return accuracy(logits[rare], labels[rare])


def shared_file(name: str) -> str:
    """The path of a data file: in the folder that WEATHERED_DATA names, else in `shared/data` beside the checkout.

    Raises DataError if it is not there.
    """
    folder = Path(os.environ.get("WEATHERED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / name).is_file():
        raise DataError(f"{folder / name} is missing; let WEATHERED_DATA name the folder that holds it.")
    return str(folder / name)
