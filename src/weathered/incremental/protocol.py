"""The class-incremental protocol on frozen features: classes arrive in phases, and every phase is scored on all so far.

After phase t the learner has seen the classes of the groups 0..t and is tested on all of them. With accuracy a_t,
"average" is the mean of a_0..a_T and "last" is a_T. The learner is never given a row of an earlier phase again.
Source: Rebuffi et al., iCaRL, CVPR 2017 (average incremental accuracy); Hou et al., CVPR 2019 (half of the classes
first, the rest split evenly); Chaudhry et al., ECCV 2018 (forgetting).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.rng import generator
from weathered.stats import Estimate, proportion_interval

Rows = tuple[Float[Tensor, "N b"], Int[Tensor, "N"]]
Source = Rows | Callable[[tuple[int, ...]], Rows]


class IncrementalLearner(Protocol):
    """partial_fit(features (n, b), labels (n,)), then predict(features (B, b)) -> scores (B, C), highest wins."""

    def partial_fit(self, features: Float[Tensor, "n b"], labels: Int[Tensor, "n"]) -> Any: ...

    def predict(self, features: Float[Tensor, "B b"]) -> Float[Tensor, "B C"]: ...


def class_phases(
    num_classes: int, base: int, phases: int, seed: int | None = None, order: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Groups of classes in order of arrival: `base` classes first, the rest in `phases` groups of equal size.

    base: classes of the first group, 0 for none. phases: groups after it. Exactly one of seed (a random order) and
    order (a permutation of 0..num_classes-1) is given. Returns phases + 1 groups, or phases if base is 0.
    Raises ValueError if the numbers are out of range, the rest does not split evenly, or order is no permutation.
    """
    if num_classes < 1 or not 0 <= base <= num_classes or phases < 0:
        raise ValueError(
            "expected num_classes >= 1, base in [0, num_classes] and phases >= 0, "
            f"got num_classes={num_classes}, base={base}, phases={phases}"
        )
    if (seed is None) == (order is None):
        raise ValueError("give either seed or order, and not both")
    rest = num_classes - base
    if (rest > 0 and (phases == 0 or rest % phases)) or (rest == 0 and phases):
        raise ValueError(
            f"{num_classes} classes less {base} leave {rest}, which {phases} phases cannot share evenly; "
            "choose phases as a divisor of the rest"
        )
    if order is None:
        order = torch.randperm(num_classes, generator=generator(int(seed or 0), "class_phases")).tolist()
    if sorted(order) != list(range(num_classes)):
        raise ValueError(f"order must hold each of 0..{num_classes - 1} exactly once, got {list(order)}")
    size = rest // phases if phases else 0
    cuts = [0, *([base] if base else []), *(base + size * (phase + 1) for phase in range(phases))]
    return [tuple(order[start:stop]) for start, stop in pairwise(cuts)]


@dataclass(frozen=True)
class IncrementalResult:
    """What a learner could do after each phase.

    phases: T groups of classes. by_group (T, T) float64: row t, column g is the accuracy after phase t on the test
    rows of group g, NaN for g > t. accuracies: after each phase, on all test rows of the classes seen so far, with
    n and a 95 % interval over test rows.
    """

    phases: tuple[tuple[int, ...], ...]
    accuracies: tuple[Estimate, ...]
    by_group: Float[Tensor, "T T"]

    @property
    def average(self) -> float:
        """Mean over phases of the accuracy on all classes seen so far, in [0, 1]."""
        return sum(estimate.value for estimate in self.accuracies) / len(self.accuracies)

    @property
    def last(self) -> float:
        """Accuracy on all classes after the last phase, in [0, 1]."""
        return self.accuracies[-1].value

    @property
    def forgetting(self) -> float:
        """Mean over all groups but the last of (best earlier accuracy - last accuracy); 0 if there is one phase.

        Negative where later phases helped. Chaudhry et al., ECCV 2018.
        """
        if len(self.phases) == 1:
            return 0.0
        best = self.by_group[:-1, :-1].nan_to_num(nan=-1.0).amax(0)
        return float((best - self.by_group[-1, :-1]).mean())


def run_incremental(
    learner: IncrementalLearner,
    phases: Sequence[Sequence[int]],
    train: Source,
    test: Source,
    batch_size: int | None = None,
) -> IncrementalResult:
    """Give a fresh learner the classes phase by phase and score it after each one on all classes seen so far.

    phases: groups of classes, for example from `class_phases`. train, test: (features (N, b), labels (N,)), or a
    function of a tuple of classes that returns such a pair for these classes. `train` is asked for the classes of one
    phase, `test` too, and its answers are kept for the phases that follow. Rows reach the learner in the given order,
    batch_size of them in one call of `partial_fit`, or all rows of a phase at once if None.
    Raises ValueError if a class is in two groups, a group is empty, or a class has no rows in train or test.
    """
    groups = tuple(tuple(int(label) for label in group) for group in phases)
    flat = [label for group in groups for label in group]
    if not flat or not all(groups) or len(set(flat)) != len(flat):
        raise ValueError(f"phases must be non-empty groups without a class in common, got {groups}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    accuracies: list[Estimate] = []
    by_group = torch.full((len(groups), len(groups)), torch.nan, dtype=torch.float64)
    tests: list[Rows] = []
    for phase, group in enumerate(groups):
        features, labels = _rows(train, group, "train")
        tests.append(_rows(test, group, "test"))
        size = batch_size or len(labels)
        for x, y in zip(features.split(size), labels.split(size), strict=True):
            learner.partial_fit(x, y)
        hits = [int((learner.predict(x).argmax(1) == y.to(x.device)).sum()) for x, y in tests]
        sizes = [len(y) for _, y in tests]
        by_group[phase, : phase + 1] = torch.tensor(hits, dtype=torch.float64) / torch.tensor(sizes)
        accuracies.append(proportion_interval(sum(hits), sum(sizes)))
    return IncrementalResult(groups, tuple(accuracies), by_group)


def _rows(source: Source, group: tuple[int, ...], name: str) -> Rows:
    if callable(source):
        features, labels = source(group)
    else:
        features, labels = source
        wanted = torch.isin(labels, torch.tensor(group, device=labels.device))
        features, labels = features[wanted.to(features.device)], labels[wanted]
    if len(features) != len(labels):
        raise ValueError(f"{name} gave {len(features)} rows of features but {len(labels)} labels")
    found = set(labels.unique().tolist())
    if found != set(group):
        raise ValueError(f"{name} must have rows of each of the classes {sorted(group)} and of no other, got {found}")
    return features, labels
