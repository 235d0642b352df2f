"""Target: a convex combination of hard labels, the one form in which labels travel through a run."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """K hard labels per sample and their weights; the weights of a sample sum to 1.

    labels (K, B) int64; weights (K, B) float in [0, 1]. K = 1 is an ordinary label. num_classes: the width of soft
    labels, None where only hard labels were given, which leave it open.
    A loss written for one hard label is summed over K by the engine, so it works with every mixing transform.
    """

    labels: Int[Tensor, "K B"]
    weights: Float[Tensor, "K B"]
    num_classes: int | None = None

    @classmethod
    def hard(cls, labels: Int[Tensor, "B"]) -> "Target":
        """One label per sample, weight 1. labels (B,) integer; raises ValueError otherwise."""
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"labels must be one-dimensional integers, got shape {tuple(labels.shape)} of {labels.dtype}; "
                "for soft labels (B, C) use Target.soft"
            )
        return cls(labels.long()[None], torch.ones(1, len(labels), device=labels.device))

    @classmethod
    def soft(cls, probabilities: Float[Tensor, "B C"]) -> "Target":
        """All C labels, weighted by a distribution per sample: (B, C), rows >= 0 that sum to 1 within 1e-4."""
        if probabilities.ndim != 2:
            raise ValueError(f"soft labels must be (B, C), got shape {tuple(probabilities.shape)}")
        # written so that NaN fails it too
        wrong = ~((probabilities.sum(1) - 1).abs() <= 1e-4) | ~(probabilities >= 0).all(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"soft labels must be >= 0 and sum to 1, row {row} sums to {float(probabilities[row].sum()):.4g}"
            )
        size, classes = probabilities.shape
        labels = torch.arange(classes, device=probabilities.device)[:, None].expand(classes, size)
        return cls(labels, probabilities.T, classes)

    def __len__(self) -> int:
        return self.labels.shape[1]

    @property
    def is_hard(self) -> bool:
        """True when every sample has exactly one label."""
        return self.labels.shape[0] == 1

    def single(self) -> Int[Tensor, "B"]:
        """The one label of each sample, (B,); raises ValueError if samples carry mixtures."""
        if not self.is_hard:
            raise ValueError(f"expected one label per sample, got mixtures of {self.labels.shape[0]}")
        return self.labels[0]

    def mix(self, partner: Int[Tensor, "B"], lam: Float[Tensor, ""] | Float[Tensor, "B"]) -> "Target":
        """Keep the share `lam` of each sample's own labels and take 1 - lam from sample `partner[i]`.

        partner (B,) positions in this batch; lam a scalar or (B,), in [0, 1].
        """
        other = Target(self.labels.index_select(1, partner), self.weights.index_select(1, partner), self.num_classes)
        return self.blend(other, lam)

    def blend(self, other: "Target", lam: Float[Tensor, ""] | Float[Tensor, "B"]) -> "Target":
        """lam * self + (1 - lam) * other, sample by sample; lam a scalar or (B,), in [0, 1].

        Raises ValueError if both are soft and of different widths.
        """
        lam = lam.to(self.weights)
        return Target(
            torch.cat([self.labels, other.labels]),
            torch.cat([self.weights * lam, other.weights * (1 - lam)]),
            _common_width([self, other]),
        )

    def select(self, index: Tensor | slice) -> "Target":
        """The targets at `index`, a slice, integer positions or a boolean mask over the batch."""
        return Target(self.labels[:, index], self.weights[:, index], self.num_classes)

    def check_classes(self, num_classes: int) -> None:
        """Raise ValueError unless soft labels have `num_classes` columns; hard labels pass."""
        if self.num_classes not in (None, num_classes):
            raise ValueError(
                f"soft labels must have one column for each of {num_classes} classes, got {self.num_classes} columns"
            )

    def dense(self, num_classes: int) -> Float[Tensor, "B C"]:
        """The distribution over classes, (B, num_classes).

        Raises ValueError if a label lies outside it, or soft labels have another number of columns.
        """
        self.check_classes(num_classes)
        if self.labels.numel():
            low, high = (int(end) for end in self.labels.aminmax())
            if low < 0 or high >= num_classes:
                raise ValueError(f"labels must be in [0, {num_classes - 1}], got {low if low < 0 else high}")
        out = self.weights.new_zeros(len(self), num_classes)
        return out.scatter_add_(1, self.labels.T, self.weights.T)

    def to(self, device: torch.device | str) -> "Target":
        return Target(self.labels.to(device), self.weights.to(device), self.num_classes)

    @staticmethod
    def cat(targets: "list[Target]") -> "Target":
        """Targets of several batches as one; shorter mixtures are filled up with weight 0.

        Raises ValueError if soft ones differ in width.
        """
        depth = max(t.labels.shape[0] for t in targets)

        def deepen(tensor: Tensor) -> Tensor:
            missing = depth - tensor.shape[0]
            return torch.cat([tensor, tensor.new_zeros(missing, tensor.shape[1])]) if missing else tensor

        return Target(
            torch.cat([deepen(t.labels) for t in targets], 1),
            torch.cat([deepen(t.weights) for t in targets], 1),
            _common_width(targets),
        )


def _common_width(targets: list[Target]) -> int | None:
    widths = sorted({t.num_classes for t in targets if t.num_classes is not None})
    if len(widths) > 1:
        raise ValueError(f"soft labels of {widths[0]} and of {widths[1]} columns cannot be combined")
    return widths[0] if widths else None


def as_target(target: "Target | Tensor") -> Target:
    """Accept a Target, hard labels (B,) or soft labels (B, C), so that parts work in anyone's loop."""
    if isinstance(target, Target):
        return target
    return Target.soft(target) if target.ndim == 2 else Target.hard(target)
