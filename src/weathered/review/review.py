"""A review: the suspects of one label audit, the decisions on them, and what is left to do."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from weathered.audit.labels.audited_labels import AuditedLabels
from weathered.core.errors import SpecError
from weathered.data.dataset import Dataset
from weathered.review.standing import SKIPPED, UNDECIDED, UNTOUCHED, Standing
from weathered.review.store import Action, Decision, ReviewStore
from weathered.stats import Estimate

Status = Literal["open", "second", "mine", "skipped", "decided", "disagreement", "all"]
STATUSES: dict[Status, str] = {
    "open": "open",
    "second": "decided by others, not by me",
    "mine": "decided by me",
    "skipped": "skipped by me",
    "decided": "decided by anybody",
    "disagreement": "disagreement",
    "all": "all suspects",
}


class Progress(NamedTuple):
    """suspects, decided, corrections, disagreements: counts. left: estimated wrong labels left among all rows."""

    suspects: int
    decided: int
    corrections: int
    disagreements: int
    left: Estimate | None


@dataclass(frozen=True)
class Selection:
    """Which suspects to show: their status, given class and confusion (given, suggested); None for any."""

    status: Status = "open"
    given: int | None = None
    pair: tuple[int, int] | None = None


class Review:
    """The suspects of an audit and the decisions on them, for any number of reviewers at once.

    audited: the label audit, aligned with `dataset`, the training set. noise: estimated share of wrong labels among
    all rows, where the audit made one. title: what the page calls the run.
    suspects (M,): rows in order of suspicion.
    """

    def __init__(
        self,
        audited: AuditedLabels,
        dataset: Dataset,
        store: ReviewStore,
        noise: Estimate | None = None,
        title: str = "run",
    ):
        self.audited, self.dataset, self.store, self.noise, self.title = audited, dataset, store, noise, title
        rows = np.flatnonzero(audited.suspected)
        self.suspects = rows[np.argsort(audited.rank[rows], kind="stable")]
        self._given, self._suggested = audited.label[self.suspects], audited.suggested[self.suspects]
        self._standing = Standing(len(audited))
        self._lock = threading.Lock()

    @property
    def class_names(self) -> Sequence[str]:
        return self.dataset.class_names

    @contextmanager
    def standing(self) -> Iterator[Standing]:
        """The state after every decision stored so far; it does not change while it is held."""
        with self._lock:
            self._standing.follow(self.store.since(self._standing.last))
            yield self._standing

    def decide(self, row: int, label: int | None, reviewer: str, key: str) -> Decision:
        """Store that a reviewer gives a suspect this class, or None for a skip.

        Raises SpecError if the row is no suspect or there is no such class.
        """
        if not (0 <= row < len(self.audited) and self.audited.suspected[row]):
            raise SpecError(f"row {row} is not among the suspects of this audit.")
        if label is not None and not 0 <= label < len(self.class_names):
            raise SpecError(f"there is no class number {label}; there are {len(self.class_names)} classes.")
        given, suggested = int(self.audited.label[row]), int(self.audited.suggested[row])
        named: dict[int | None, Action] = {None: "skip", suggested: "accept", given: "keep"}
        return self.store.decide(row, reviewer, named.get(label, "relabel"), label, given, key)

    def select(self, selection: Selection, reviewer: str, standing: Standing) -> np.ndarray:
        """The suspects that a selection shows to a reviewer, most suspicious first."""
        label, own = standing.label[self.suspects], standing.own(reviewer)[self.suspects]
        match selection.status:
            case "open":
                shown = (label == UNDECIDED) & (own != SKIPPED)
            case "second":
                shown = (label != UNDECIDED) & (own == UNTOUCHED)
            case "mine":
                shown = own >= 0
            case "skipped":
                shown = own == SKIPPED
            case "decided":
                shown = label != UNDECIDED
            case "disagreement":
                shown = standing.disagreement[self.suspects]
            case "all":
                shown = np.ones(len(self.suspects), bool)
        if selection.given is not None:
            shown = shown & (self._given == selection.given)
        if selection.pair is not None:
            shown = shown & (self._given == selection.pair[0]) & (self._suggested == selection.pair[1])
        return self.suspects[shown]

    def class_counts(self) -> list[tuple[int, int]]:
        """(given class, suspects) for the classes that have suspects, in the order of the classes."""
        classes, counts = np.unique(self._given, return_counts=True)
        return list(zip(classes.tolist(), counts.tolist(), strict=True))

    def pair_counts(self) -> list[tuple[tuple[int, int], int]]:
        """((given, suggested), suspects), the most frequent confusion first."""
        size = len(self.class_names)
        pairs, counts = np.unique(self._given * size + self._suggested, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(divmod(int(pairs[i]), size), int(counts[i])) for i in order]

    def progress(self, standing: Standing) -> Progress:
        """How far the review is. The estimate of what is left is the noise rate's, less the corrections found."""
        label = standing.label
        corrections = int(((label >= 0) & (label != self.audited.label)).sum())
        left = None
        if self.noise is not None:
            value, low, high = (
                max(0.0, share * len(label) - corrections)
                for share in (self.noise.value, self.noise.low, self.noise.high)
            )
            left = Estimate(value, low, high, len(label))
        return Progress(
            suspects=len(self.suspects),
            decided=int((label[self.suspects] != UNDECIDED).sum()),
            corrections=corrections,
            disagreements=int(standing.disagreement[self.suspects].sum()),
            left=left,
        )
