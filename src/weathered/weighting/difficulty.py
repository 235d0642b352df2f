"""Class-wise difficulty: one minus the accuracy of each class on validation data, and the weights that follow from it.

Shared by the weights and the sampler of class-difficulty balancing (CDB).
Source: Sinha, Ohashi and Nakamura, "Class-Difficulty Based Methods for Long-Tailed Visual Recognition", IJCV 2022.
    d_c = 1 - accuracy of class c;   w_c ~ d_c^tau
    dynamic: tau = 2 sigmoid(a_max / (a_min + 0.01) - 1) for the largest and smallest class accuracy, in [0.54, 2)
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.predict import outcomes
from weathered.core.roles import Part
from weathered.weighting.base import check_labels

if TYPE_CHECKING:
    from weathered.core.run import Run

Tau = float | Literal["dynamic", "released"]
"""An exponent, or a rule that gives one from the accuracies of the classes."""

EPSILON = 0.01


def check_tau(tau: Tau) -> None:
    """Raise ValueError unless tau is >= 0 and finite, `dynamic` or `released`."""
    if isinstance(tau, str):
        if tau not in ("dynamic", "released"):
            raise ValueError(f"tau must be a number, dynamic or released, got '{tau}'")
    elif not (tau >= 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be >= 0 and finite, got {tau}")


def exponent(difficulty: Float[Tensor, "C"], tau: Tau) -> float:
    """The exponent that `tau` names for these difficulties.

    `dynamic` is the published rule; `released` the one in the authors' classes for CIFAR and video,
    sigmoid(a_max / (a_min + 0.01)) in [0.5, 1).
    """
    if not isinstance(tau, str):
        return float(tau)
    accuracy = 1 - difficulty
    ratio = float(accuracy.max()) / (float(accuracy.min()) + EPSILON)
    bend = 1 / (1 + math.exp(-(ratio - 1 if tau == "dynamic" else ratio)))
    return 2 * bend if tau == "dynamic" else bend


def powers(difficulty: Float[Tensor, "C"], tau: Tau) -> Float[Tensor, "C"]:
    """difficulty^tau in units of the hardest class, (C,) float64 in [0, 1]; 1 each where no class is difficult.

    difficulty (C,): in [0, 1]. Raises ValueError for one outside, or a tau out of range.
    """
    check_tau(tau)
    checked = check_difficulty(difficulty)
    if not bool((checked > 0).any()):
        return torch.ones_like(checked)
    # of the hardest, so that no power underflows for all
    return (checked / checked.max()) ** exponent(checked, tau)


def shares(difficulty: Float[Tensor, "C"], tau: Tau) -> Float[Tensor, "C"]:
    """`powers` divided by their sum, (C,) float64; arguments and errors are the same."""
    found = powers(difficulty, tau)
    return found / found.sum()


def check_difficulty(difficulty: Tensor, num_classes: int | None = None) -> Float[Tensor, "C"]:
    """The difficulties as float64. Raises ValueError unless they are (C,) numbers in [0, 1]."""
    checked = torch.as_tensor(difficulty).double()
    if checked.ndim != 1 or not len(checked) or num_classes not in (None, len(checked)):
        raise ValueError(f"difficulty must hold one number for each class, got shape {tuple(checked.shape)}")
    if bool((wrong := ~((checked >= 0) & (checked <= 1))).any()):
        first = int(wrong.nonzero()[0])
        raise ValueError(f"difficulty must be in [0, 1], got {float(checked[first])} for class {first}")
    return checked


class DifficultyPart(Part):
    """State of class difficulties, measured on validation data after an epoch.

    num_classes: C. tau: see `exponent`. every >= 1: epochs between measurements; the first is after the first epoch.
    floor: a difficulty of at least 1 / (n + 2) for n validation samples of the class, so that a class without an error
    is trained on. `difficulty` (C,) float64: 1 before the first measurement.
    A class without validation samples keeps its difficulty. Raises ValueError for arguments out of range.
    """

    traits = Traits(
        needs={"validation": "difficulty is measured on it", "class_counts": "every class is measured and trained on"}
    )

    def __init__(self, num_classes: int, tau: Tau = "dynamic", every: int = 1, floor: bool = False):
        check_tau(tau)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.tau: Tau = tau
        self.every, self.floor = every, floor
        self.difficulty = torch.ones(num_classes, dtype=torch.float64)

    def update(self, difficulty: Float[Tensor, "C"]) -> None:
        """Take over difficulties in [0, 1], of any kind: one minus the precision or overlap of a class, say."""
        self.difficulty = check_difficulty(difficulty, len(self.difficulty))
        if not bool((self.difficulty > 0).any()):
            warnings.warn(
                "no class has an error on the validation data, so all count alike; give more of them, or floor=true",
                stacklevel=2,
            )

    def before_epoch(self, run: Run) -> None:
        if run.step == 0:
            self.difficulty = torch.ones_like(self.difficulty)

    def after_epoch(self, run: Run) -> None:
        # run.epoch is the number of epochs that are done by now
        if (run.epoch - 1) % self.every or run.validation is None:
            return
        logits, labels = outcomes(run, run.validation)
        self.update(self.measured(logits.argmax(1) == labels, labels))

    def measured(self, correct: Tensor, labels: Int[Tensor, "M"]) -> Float[Tensor, "C"]:
        """One minus the accuracy of each class; what was there before for a class without samples.

        labels (M,): in [0, C). Raises ValueError for one outside.
        """
        size = len(self.difficulty)
        check_labels(labels, size)
        counts = torch.bincount(labels, minlength=size)
        hits = torch.zeros(size, dtype=torch.float64).index_add_(0, labels, correct.double())
        if bool((counts == 0).any()):
            absent = (counts == 0).nonzero()[:, 0].tolist()
            warnings.warn(f"classes without validation samples keep their difficulty: {absent}", stacklevel=2)
        found = 1 - hits / counts.clamp_min(1)
        if self.floor:
            found = torch.maximum(found, 1 / (counts + 2).double())
        return torch.where(counts > 0, found, self.difficulty)

    def state_dict(self) -> dict[str, Any]:
        return {"difficulty": self.difficulty}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.difficulty = state["difficulty"]
