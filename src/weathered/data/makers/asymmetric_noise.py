"""Asymmetric label noise: wrong labels from each class to one fixed other class, as similar classes are confused.

P(label = m(c)) = rate for a sample of class c in the map m. Limits: rate 0 changes nothing; rate 1 renames classes.
Source: Patrini et al., CVPR 2017, whose map for CIFAR-10 is truck -> automobile, bird -> airplane, deer -> horse,
cat <-> dog; the cyclic map is theirs for CIFAR-100, there within superclasses.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.spec import near
from weathered.data.dataset import Dataset
from weathered.data.makers.common import check_rate, pick_exactly, with_noisy_labels

CIFAR10_MAP = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


def asymmetric_noise(
    labels: Int[Tensor, "N"], target: Int[Tensor, "C"], rate: float, rng: torch.Generator
) -> Int[Tensor, "N"]:
    """A copy of the labels in which int(rate * M) of the M rows with target[label] != label carry target[label].

    labels (N,) in [0, C). target (C,): the class that each class is mistaken for. rate in [0, 1].
    """
    check_rate(rate)
    eligible = (target[labels] != labels).nonzero()[:, 0]
    picked = eligible[pick_exactly(len(eligible), rate, rng)]
    out = labels.clone()
    out[picked] = target[labels[picked]]
    return out


class AsymmetricNoise:
    """Mistake classes for one fixed other class each, in int(rate * M) of the M rows of classes in the map.

    rate in [0, 1]. class_map: name or number -> name or number; classes that it leaves out stay untouched. None:
    the known map where the classes are CIFAR-10's, so that half of the classes are affected, otherwise c -> c + 1,
    cyclic. The truth is kept.
    """

    def __init__(self, rate: float, class_map: Mapping[str | int, str | int] | None = None):
        check_rate(rate)
        if class_map is not None and not class_map:
            raise ValueError("class_map must name at least one class")
        self.rate, self.class_map = rate, None if class_map is None else dict(class_map)

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        target = self.targets(dataset.class_names)
        labels = asymmetric_noise(dataset.labels, target, self.rate, rng)
        return with_noisy_labels(dataset, labels, f"Asymmetric label noise, rate {self.rate:g}")

    def targets(self, class_names: tuple[str, ...]) -> Int[Tensor, "C"]:
        """The class that each class is mistaken for, (C,). Raises DataError for an unknown class in the map."""
        count = len(class_names)
        if count < 2:
            raise DataError(f"asymmetric noise needs at least 2 classes, got {count}")
        chosen = self.class_map
        if chosen is None and set(CIFAR10_MAP) | set(CIFAR10_MAP.values()) <= set(class_names) and count == 10:
            chosen = CIFAR10_MAP
        identity = torch.arange(count)
        if chosen is None:
            return (identity + 1) % count
        for source, mistaken in chosen.items():
            identity[_position(source, class_names)] = _position(mistaken, class_names)
        return identity


def _position(name: str | int, class_names: tuple[str, ...]) -> int:
    if str(name) in class_names:
        return class_names.index(str(name))
    if isinstance(name, int) and 0 <= name < len(class_names):
        return name
    raise DataError(f"class_map names the class '{name}', which the data do not have.{near(str(name), class_names)}")
