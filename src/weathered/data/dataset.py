"""Dataset: the one shape in which all data reach a run, whatever they were read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as dataclass_replace
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.errors import DataError
from weathered.core.pixels import IGNORE, MASK, check_masks, main_labels, pixel_counts
from weathered.core.tokens import CAPTION, RESERVED
from weathered.data.clips import film_strip


class Inputs(Protocol):
    """N inputs that are fetched by position: in memory, memory-mapped, or decoded on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W) for images, (T, C, H, W) for clips, (D,) for rows of a table."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """uint8 for images and clips (0..255), float32 for tables."""
        ...

    @property
    def in_memory(self) -> bool:
        """True when `fetch` is a plain indexing operation, so no workers are worth their start."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, index: Int[Tensor, "B"]) -> Tensor:
        """The inputs at these positions, stacked: (B, *shape)."""
        ...

    def select(self, index: Int[Tensor, "M"]) -> "Inputs":
        """The same inputs, restricted and reordered to these positions."""
        ...


class MemoryInputs:
    """Inputs held as one tensor, (N, C, H, W) or (N, T, C, H, W) uint8 or (N, D) float32; may be memory-mapped."""

    in_memory = True

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def __len__(self) -> int:
        return len(self.tensor)

    def fetch(self, index: Int[Tensor, "B"]) -> Tensor:
        return self.tensor[index]

    def select(self, index: Int[Tensor, "M"]) -> "MemoryInputs":
        return MemoryInputs(self.tensor[index])


@dataclass(frozen=True)
class Dataset:
    """Inputs with labels, class names, and the truth where it is known. Never changed in place.

    inputs: N inputs. labels (N,) int64 in [0, len(class_names)). clean_labels (N,) int64 or None: true labels,
    used for scoring only, -1 where no class is right (open-set images). extra: named columns, (N, ...) each; `mask`
    (N, H, W) uint8 holds the classes of pixels, 255 for none, `group` (N,) int64 the group of each sample, and
    `caption` (N, L) int64 the words of its caption, see `core.tokens`.
    group_names: how groups are called, in the order of their numbers. words: the vocabulary of captions.
    notes: what was done to the data, one sentence each. source_rows (N,) int64 or None: the number of each row in
    the source it was read from. Raises DataError where lengths or labels do not fit.
    """

    inputs: Inputs
    labels: Int[Tensor, "N"]
    class_names: tuple[str, ...]
    name: str = "data"
    clean_labels: Int[Tensor, "N"] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source_rows: Int[Tensor, "N"] | None = None
    group_names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size, classes = len(self.inputs), len(self.class_names)
        columns: dict[str, Tensor | None] = {
            "labels": self.labels,
            "clean_labels": self.clean_labels,
            "source_rows": self.source_rows,
            **self.extra,
        }
        for column, values in columns.items():
            if values is not None and len(values) != size:
                raise DataError(f"{self.name}: {size} inputs but {len(values)} values in '{column}'.")
        for column, lowest in (("labels", 0), ("clean_labels", -1)):
            values = columns[column]
            if values is None or not len(values):
                continue
            outside = (values < lowest) | (values >= classes)
            if outside.any():
                row = int(outside.nonzero()[0])
                raise DataError(
                    f"{self.name}: {column} must be in [{lowest}, {classes - 1}] for {classes} classes, "
                    f"got {int(values[row])} in row {row}."
                )
        if "group" in self.extra and (self.extra["group"].ndim != 1 or self.extra["group"].is_floating_point()):
            raise DataError(f"{self.name}: groups must be (N,) whole numbers, got {tuple(self.extra['group'].shape)}.")
        if "group" in self.extra and size:
            lowest, highest = (int(end) for end in self.extra["group"].aminmax())
            if self.group_names and not 0 <= lowest <= highest < len(self.group_names):
                limit = f"[0, {len(self.group_names) - 1}]"
                raise DataError(f"{self.name}: groups must be in {limit}, got {lowest} to {highest}.")
        if self.is_captioned:
            self._check_captions()
        if self.is_segmentation:
            shape = self.inputs.shape
            wrong = check_masks(self.extra[MASK], *shape[-2:], classes) if len(shape) == 3 else "masks need images"
            if wrong:
                raise DataError(f"{self.name}: {wrong}.")

    def _check_captions(self) -> None:
        captions, most = self.extra[CAPTION], len(self.words) + RESERVED - 1
        if captions.ndim != 2 or captions.dtype != torch.int64:
            raise DataError(f"{self.name}: captions must be (N, L) int64, got {tuple(captions.shape)}.")
        lowest, highest = (int(end) for end in captions.aminmax()) if captions.numel() else (0, 0)
        if lowest < 0 or highest > most:
            raise DataError(f"{self.name}: word ids must be in [0, {most}], got {lowest} to {highest}.")

    @classmethod
    def of(
        cls, inputs: Tensor, labels: Tensor, class_names: tuple[str, ...] | None = None, **changes: Any
    ) -> "Dataset":
        """A data set from tensors: images (N, C, H, W) or clips (N, T, C, H, W) as uint8, rows (N, D) as float; labels
        (N,) integers.
        """
        if inputs.ndim in (4, 5) and inputs.dtype != torch.uint8:
            raise DataError(
                f"images must be uint8 in 0..255, got {inputs.dtype}; multiply [0, 1] images by 255 and round."
            )
        if inputs.dtype != torch.uint8:
            inputs = inputs.float()
            if not torch.isfinite(inputs).all():
                row = int((~torch.isfinite(inputs).flatten(1)).any(1).nonzero()[0])
                raise DataError(f"features must be finite, row {row} holds NaN or infinity.")
        labels = labels.long()
        if class_names is None:
            class_names = tuple(str(c) for c in range(int(labels.max()) + 1 if len(labels) else 0))
        return cls(MemoryInputs(inputs), labels, class_names, **changes)

    @classmethod
    def segmentation(
        cls, images: "Tensor | Inputs", masks: Tensor, class_names: tuple[str, ...] | None = None, **changes: Any
    ) -> "Dataset":
        """Images (N, C, H, W) uint8 with the classes of their pixels (N, H, W) uint8, 255 where a pixel has none.

        `labels` become the class of most pixels of each image, by which the data are split.
        Raises DataError for other shapes, or a class without a name.
        """
        if class_names is None:
            known = masks[masks != IGNORE]
            class_names = tuple(str(c) for c in range(int(known.max()) + 1 if len(known) else 0))
        # checked before labels are read off them
        if masks.ndim != 3 or masks.dtype != torch.uint8 or len(masks) != len(images):
            raise DataError(
                f"masks must be (N, H, W) uint8, one for each of {len(images)} images, got {tuple(masks.shape)} of "
                f"{masks.dtype}."
            )
        labels = main_labels(masks, len(class_names))
        extra = {**changes.pop("extra", {}), MASK: masks}
        if not isinstance(images, Tensor):
            return cls(images, labels, class_names, extra=extra, **changes)
        return cls.of(images, labels, class_names, extra=extra, **changes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_segmentation(self) -> bool:
        """Whether pixels have labels."""
        return MASK in self.extra

    @property
    def is_captioned(self) -> bool:
        """Whether each input has a caption whose words are known."""
        return CAPTION in self.extra and bool(self.words)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_image(self) -> bool:
        return len(self.inputs.shape) == 3

    @property
    def is_clip(self) -> bool:
        return len(self.inputs.shape) == 4

    @property
    def kind(self) -> str:
        """What the inputs are, for messages."""
        return "images" if self.is_image else "clips" if self.is_clip else "a table"

    @property
    def class_counts(self) -> Int[Tensor, "C"]:
        """How many samples, or pixels of segmentation data, carry each label, (C,) int64."""
        if self.is_segmentation:
            return pixel_counts(self.extra[MASK], self.num_classes)
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def true_class_counts(self) -> Int[Tensor, "C"]:
        """`class_counts` by the clean labels where they are known, since wrong labels fill rare classes up."""
        if self.clean_labels is None:
            return self.class_counts
        return torch.bincount(self.clean_labels[self.clean_labels >= 0], minlength=self.num_classes)

    @property
    def group_counts(self) -> Int[Tensor, "G"]:
        """How many samples each group has, (G,) int64. Raises DataError if there are no groups."""
        if "group" not in self.extra:
            raise DataError(f"{self.name}: there are no groups; name the column that holds them with --group-column.")
        groups = self.extra["group"]
        if len(groups) and int(groups.min()) < 0:
            raise DataError(f"{self.name}: groups must be 0 or above, got {int(groups.min())}.")
        return torch.bincount(groups, minlength=len(self.group_names))

    @property
    def has_groups(self) -> bool:
        """Whether samples of at least two groups are there."""
        return "group" in self.extra and len(self.extra["group"].unique()) > 1

    @property
    def names_of_groups(self) -> tuple[str, ...]:
        """`group_names`, or the numbers of the groups where they have no names."""
        return self.group_names or tuple(str(g) for g in range(len(self.group_counts)))

    @property
    def facts(self) -> set[str]:
        """What the data provide to parts."""
        shown = {"image"} if self.is_image else {"clip"}
        kind = {*shown, "range01", "uniform_pixels"} if self.is_image or self.is_clip else {"table"}
        group = {"group"} if "group" in self.extra else set()
        kind |= {"mask"} if self.is_segmentation else set()
        kind |= {"caption"} if self.is_captioned else set()
        return {*kind, *group, "hard_target", "num_classes", "class_counts", "index"}

    def replace(self, **changes: Any) -> "Dataset":
        """A copy with some fields changed."""
        return dataclass_replace(self, **changes)

    def select(self, index: Tensor, note: str | None = None) -> "Dataset":
        """The rows at `index`, integer positions or a boolean mask (N,), in that order."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        return self.replace(
            inputs=self.inputs.select(index),
            labels=self.labels[index],
            clean_labels=None if self.clean_labels is None else self.clean_labels[index],
            source_rows=None if self.source_rows is None else self.source_rows[index],
            extra={k: v[index] for k, v in self.extra.items()},
            notes=(*self.notes, note) if note else self.notes,
        )

    @property
    def rows_in_source(self) -> Int[Tensor, "N"]:
        """`source_rows`, or 0, 1, 2, ... where the data come from no source."""
        return torch.arange(len(self)) if self.source_rows is None else self.source_rows

    def floats(self, index: Tensor) -> Tensor:
        """Inputs as models receive them: images and clips in [0, 1] as float32, tables unchanged."""
        return as_float(self.inputs.fetch(index))

    def pictures(self, index: Int[Tensor, "B"]) -> Tensor | None:
        """Inputs as pictures (B, C, H, W) uint8: images, and some frames of clips side by side; None for a table."""
        if self.is_image:
            return self.inputs.fetch(index)
        return torch.stack([film_strip(clip) for clip in self.inputs.fetch(index)]) if self.is_clip else None


def as_float(x: Tensor) -> Tensor:
    """uint8 images and clips to float32 in [0, 1]; floating tensors pass unchanged."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x
