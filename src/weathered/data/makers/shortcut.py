"""A shortcut: a cue that follows the label in the training data and is drawn anew in the test data.

The cue of a row is one of as many as there are classes. In training it is that of the label in an exact share of rows,
`agreement`, and uniform over the others elsewhere; in the test set the share is `test_agreement`, 1 / C by default,
where the cue says nothing. Groups tell the two kinds of rows apart. Kinds: a patch of pixels, after Geirhos et al.,
"Shortcut Learning in Deep Neural Networks", Nature Machine Intelligence 2020, or the colour of the whole image, as in
Arjovsky et al., "Invariant Risk Minimization", 2019.
Limits: agreement = 1 tells nobody the label from the cue; agreement = 1 / C is a cue that says nothing in training too.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.data.dataset import Dataset, Inputs
from weathered.data.makers.common import pick_exactly
from weathered.data.patch import Patch

GROUPS = ("cue follows the label", "cue contradicts the label")

Draw = Callable[[Tensor, Int[Tensor, "B"]], Tensor]
"""Images (B, C, H, W) uint8 and their cues to images with the cues in them."""


@dataclass(frozen=True)
class CuedInputs:
    """The inputs `base`, each with its cue drawn in when it is fetched; nothing is copied.

    cues (N,): the cue of each. channels: of the images that `draw` returns.
    """

    base: Inputs
    cues: Int[Tensor, "N"]
    draw: Draw
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.base.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def in_memory(self) -> bool:
        return self.base.in_memory

    def __len__(self) -> int:
        return len(self.cues)

    def fetch(self, index: Int[Tensor, "B"]) -> Tensor:
        return self.draw(self.base.fetch(index), self.cues[index])

    def select(self, index: Int[Tensor, "M"]) -> CuedInputs:
        return CuedInputs(self.base.select(index), self.cues[index], self.draw, self.channels)


def draw_cues(labels: Int[Tensor, "N"], num_classes: int, agreement: float, rng: torch.Generator) -> Int[Tensor, "N"]:
    """A cue in [0, num_classes) for each label: the label itself in int(agreement N) rows, another one elsewhere.

    labels (N,) in [0, num_classes). agreement in [0, 1]. Other cues are uniform.
    """
    follows = pick_exactly(len(labels), agreement, rng)
    shift = torch.randint(1, num_classes, (len(labels),), generator=rng)
    return torch.where(follows, labels, (labels + shift) % num_classes)


def stamped(images: Tensor, cues: Int[Tensor, "B"], patches: tuple[Patch, ...]) -> Tensor:
    """Images with the patch of their cue."""
    out = images.clone()
    for cue in cues.unique().tolist():
        rows = cues == cue
        out[rows] = patches[cue].stamp(images[rows])
    return out


def coloured(images: Tensor, cues: Int[Tensor, "B"], colours: Tensor) -> Tensor:
    """The brightness of each image, the mean of its channels, in the colour of its cue. colours (K, 3) in [0, 1]."""
    brightness = images.float().mean(1, keepdim=True)
    return (brightness * colours[cues][:, :, None, None]).round().to(images.dtype)


def hues(count: int) -> Tensor:
    """Colours (count, 3), evenly spread around the circle of hues; red and green where there are two."""
    return torch.tensor([colorsys.hsv_to_rgb(cue / max(count, 3), 1.0, 1.0) for cue in range(count)])


class Shortcut:
    """Give each image a cue that follows its label in training, and in the test set only by chance.

    kind: `patch`, a square of size x size pixels with its upper left corner at row `top` and column `left`, or
    `colour`, the image drawn in one colour, as three channels. code: what of a patch tells classes apart, its `grey`
    value from black to white, or the `place` of a white one, row by row from the corner on. agreement in [0, 1]: share
    of training rows whose cue is that of their label. test_agreement in [0, 1]: the same for the test set, 1 / C by
    default. halves: relabel first into two classes, the lower and the upper half of the classes.

    Cues follow the labels as given, wrong ones too. Validation data are split off afterwards and have the shortcut; so
    has a fold. `group` becomes 0 where the cue follows the label and 1 where it contradicts it, in both sets.
    Raises ValueError for values out of range, DataError for data that are no images, have groups already, or on which
    patches do not fit.
    """

    def __init__(
        self,
        kind: Literal["patch", "colour"] = "patch",
        agreement: float = 1.0,
        test_agreement: float | None = None,
        size: int = 3,
        top: int = 0,
        left: int = 0,
        code: Literal["grey", "place"] = "grey",
        halves: bool = False,
    ):
        if kind not in ("patch", "colour"):
            raise ValueError(f"kind must be 'patch' or 'colour', got '{kind}'")
        if code not in ("grey", "place"):
            raise ValueError(f"code must be 'grey' or 'place', got '{code}'")
        for name, share in (("agreement", agreement), ("test_agreement", test_agreement)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        if size < 1 or min(top, left) < 0:
            raise ValueError(f"size must be at least 1, top and left at least 0, got {size}, {top} and {left}")
        self.kind, self.code, self.halves = kind, code, halves
        self.agreement, self.test_agreement = agreement, test_agreement
        self.size, self.top, self.left = size, top, left

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        return self._planted(dataset, self.agreement, rng)

    def test_set(self, dataset: Dataset, rng: torch.Generator) -> Dataset:
        """The test set with its own cues."""
        return self._planted(dataset, self.test_agreement, rng)

    def _planted(self, dataset: Dataset, agreement: float | None, rng: torch.Generator) -> Dataset:
        if not dataset.is_image:
            raise DataError(f"{dataset.name}: a shortcut needs images, got inputs of shape {dataset.inputs.shape}.")
        if "group" in dataset.extra:
            raise DataError(
                f"{dataset.name}: a shortcut sorts rows into groups of its own, but the data have groups already; "
                "leave their column out."
            )
        if self.halves:
            dataset = in_halves(dataset)
        if dataset.num_classes < 2:
            raise DataError(f"{dataset.name}: a shortcut needs at least 2 classes, got {dataset.num_classes}.")
        share = 1 / dataset.num_classes if agreement is None else agreement
        cues = draw_cues(dataset.labels, dataset.num_classes, share, rng)
        draw, channels = self._draw(dataset)
        inputs = CuedInputs(dataset.inputs, cues, draw, channels)
        group = (cues != dataset.labels).long()
        what = f"A {self.kind} of {self.size} x {self.size} pixels" if self.kind == "patch" else "A colour"
        note = f"{what} follows the label in {int((group == 0).sum())} of {len(group)} images."
        return dataset.replace(
            inputs=inputs,
            extra={**dataset.extra, "group": group, "cue": cues},
            group_names=GROUPS,
            notes=(*dataset.notes, note),
        )

    def _draw(self, dataset: Dataset) -> tuple[Draw, int]:
        count, (channels, _, width) = dataset.num_classes, dataset.inputs.shape
        if self.kind == "colour":
            return partial(coloured, colours=hues(count)), 3
        size = self.size
        columns = max((width - self.left) // size, 1)
        patches = []
        for cue in range(count):
            row, column = divmod(cue, columns) if self.code == "place" else (0, 0)
            grey = 1.0 if self.code == "place" else cue / (count - 1)
            patch = Patch(torch.full((channels, size, size), grey), self.top + row * size, self.left + column * size)
            try:
                patch.check_fits(dataset.inputs.shape)
            except ValueError as error:
                raise DataError(f"{dataset.name}: {error}; take a smaller size.") from error
            patches.append(patch)
        return partial(stamped, patches=tuple(patches)), channels


def in_halves(dataset: Dataset) -> Dataset:
    """The data set with two classes, the first half of its classes, rounded up, and the others.

    Raises DataError for fewer than two classes.
    """
    names = dataset.class_names
    if len(names) < 2:
        raise DataError(f"{dataset.name}: two halves need at least 2 classes, got {len(names)}.")
    middle = -(-len(names) // 2)
    truth = dataset.clean_labels
    if truth is not None:
        truth = torch.where(truth < 0, truth, (truth >= middle).long())
    parts = names[:middle], names[middle:]
    return dataset.replace(
        labels=(dataset.labels >= middle).long(),
        clean_labels=truth,
        class_names=tuple(part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts),
    )
