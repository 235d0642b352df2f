"""What the decisions amount to: the label each row stands at, who disagrees, what each reviewer did."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from weathered.review.store import Decision

UNDECIDED = -1
DISPUTED = -2
UNTOUCHED = -1
SKIPPED = -2


class Resolution(NamedTuple):
    """The label that reviewers gave a row together.

    label: None where nobody gave one, or where no label has more than half of the reviewers who gave one. agreed:
    reviewers who gave `label`, or the most frequent one where there is none. of: reviewers who gave any. disputed:
    whether they gave different labels.
    """

    label: int | None
    agreed: int
    of: int
    disputed: bool


def resolve(current: Iterable[Decision]) -> Resolution:
    """The resolution of the current decisions of a row, one per reviewer; those who skipped give no label."""
    votes = Counter(decision.label for decision in current if decision.label is not None)
    if not votes:
        return Resolution(None, 0, 0, False)
    label, agreed = votes.most_common(1)[0]
    of = votes.total()
    return Resolution(label if 2 * agreed > of else None, agreed, of, len(votes) > 1)


class Standing:
    """The state that follows from decisions 1, 2, 3, ..., kept up to date as lines arrive.

    size: training rows N. last: id of the last line that was followed. label (N,) int64: resolved class, UNDECIDED
    where nobody gave one, DISPUTED where reviewers gave different ones without a majority. disagreement (N,) bool:
    whether different ones were given at all.
    """

    def __init__(self, size: int):
        self.last = 0
        self.label = np.full(size, UNDECIDED, np.int64)
        self.disagreement = np.zeros(size, bool)
        self._own: dict[str, np.ndarray] = {}
        self._made: dict[int, Decision] = {}
        self._in_force: dict[str, list[Decision]] = {}
        self._stacks: dict[int, dict[str, list[Decision]]] = {}

    def follow(self, lines: Iterable[Decision]) -> list[int]:
        """Take up further lines, in their order; returns the rows they changed."""
        changed = []
        for line in lines:
            of_row = self._stacks.setdefault(line.row, {})
            stack = of_row.setdefault(line.reviewer, [])
            if line.undone is None:
                stack.append(line)
                self._made[line.id] = line
                self._in_force.setdefault(line.reviewer, []).append(line)
            else:
                undone = self._made.pop(line.undone)
                stack.remove(undone)
                self._in_force[line.reviewer].remove(undone)
                if not stack:
                    del of_row[line.reviewer]
            self._refresh(line.row, line.reviewer)
            self.last = line.id
            changed.append(line.row)
        return changed

    def current(self, row: int) -> dict[str, Decision]:
        """The decision in force of each reviewer on a row: the last one that was not taken back."""
        return {reviewer: stack[-1] for reviewer, stack in self._stacks.get(row, {}).items()}

    def own(self, reviewer: str) -> np.ndarray:
        """(N,) int32: the class a reviewer gave each row, SKIPPED, or UNTOUCHED."""
        if reviewer not in self._own:
            self._own[reviewer] = np.full(len(self.label), UNTOUCHED, np.int32)
        return self._own[reviewer]

    def last_of(self, reviewer: str) -> Decision | None:
        """The reviewer's last decision that was not taken back."""
        made = self._in_force.get(reviewer)
        return made[-1] if made else None

    def touched(self) -> list[int]:
        """Rows on which some decision is in force, ascending."""
        return sorted(row for row, of_row in self._stacks.items() if of_row)

    def _refresh(self, row: int, reviewer: str) -> None:
        current = self.current(row)
        mine = current.get(reviewer)
        self.own(reviewer)[row] = UNTOUCHED if mine is None else SKIPPED if mine.label is None else mine.label
        resolution = resolve(current.values())
        self.disagreement[row] = resolution.disputed
        nothing = DISPUTED if resolution.of else UNDECIDED
        self.label[row] = nothing if resolution.label is None else resolution.label
