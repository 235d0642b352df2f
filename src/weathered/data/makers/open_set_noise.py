"""Open-set noise: images of none of the classes, under the labels of the closed set.

int(rate * N) rows keep their label but show an image of another data set; their true label is -1, none.
Limits: rate 0 changes nothing. Source: Wang et al., "Iterative Learning with Open-set Noisy Labels", CVPR 2018.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset, Inputs
from weathered.data.makers.common import check_rate, pick_exactly, truth_of


class OverlaidInputs:
    """The inputs `base`, some of them replaced by inputs of `other` when fetched; nothing is copied.

    replacement (N,) int64: position in `other`, or -1 to keep the one of `base`.
    """

    def __init__(self, base: Inputs, other: Inputs, replacement: Int[Tensor, "N"]):
        self.base, self.other, self.replacement = base, other, replacement

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def in_memory(self) -> bool:
        return self.base.in_memory and self.other.in_memory

    def __len__(self) -> int:
        return len(self.replacement)

    def fetch(self, index: Int[Tensor, "B"]) -> Tensor:
        replacement = self.replacement[index]
        replaced = replacement >= 0
        out = torch.empty(len(index), *self.shape, dtype=self.dtype)
        out[~replaced] = self.base.fetch(index[~replaced])
        out[replaced] = self.other.fetch(replacement[replaced])
        return out

    def select(self, index: Int[Tensor, "M"]) -> "OverlaidInputs":
        return OverlaidInputs(self.base.select(index), self.other, self.replacement[index])


class OpenSetNoise:
    """Replace the inputs of int(rate * N) rows by random ones of `source`; labels stay, clean_labels become -1.

    rate in [0, 1]. source: a data set with inputs of the same shape, drawn without repetition while it lasts.
    Raises DataError if shapes differ or the source is empty.
    """

    def __init__(self, rate: float, source: Dataset):
        check_rate(rate)
        if not len(source):
            raise DataError(f"{source.name}: open-set noise needs a source with at least one row.")
        self.rate, self.source = rate, source

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        inputs, other = dataset.inputs, self.source.inputs
        if inputs.shape != other.shape or inputs.dtype != other.dtype:
            raise DataError(
                f"open-set images of {self.source.name} are {other.shape}, those of {dataset.name} {inputs.shape}; "
                "load both with the same image_size and channels."
            )
        picked = pick_exactly(len(dataset), self.rate, rng)
        count = int(picked.sum())
        rounds = -(-count // len(self.source))
        drawn = [torch.randperm(len(self.source), generator=rng) for _ in range(rounds)]
        replacement = torch.full((len(dataset),), -1)
        replacement[picked] = torch.cat([*drawn, torch.empty(0, dtype=torch.int64)])[:count]
        truth = truth_of(dataset)
        truth[picked] = -1
        note = (
            f"Open-set noise, rate {self.rate:g}: {count} of {len(dataset)} inputs were replaced by ones of "
            f"{self.source.name}."
        )
        return dataset.replace(
            inputs=OverlaidInputs(inputs, other, replacement),
            clean_labels=truth,
            notes=(*dataset.notes, note),
        )
