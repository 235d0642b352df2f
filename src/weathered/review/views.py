"""What the templates place: suspects, their marks, the sample in focus and the progress, in words."""

from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from weathered.review.pictures import Feature, Pictures, TableRows
from weathered.review.query import Query
from weathered.review.review import STATUSES, Progress, Review
from weathered.review.standing import UNDECIDED, Standing

PER_PAGE = 24
MOST_PAIRS = 300
"""Confusions listed in the filter; the rarer ones are found by class."""
CARD_FEATURES = 3


class Mark(NamedTuple):
    """What was decided on a suspect, as one reviewer sees it.

    own: in words, empty if nothing. kind: accept, keep, relabel, skip or empty. others: what other reviewers gave.
    disputed: whether labels differ. open: whether nobody gave one.
    """

    row: int
    name: str
    own: str
    kind: str
    others: str
    disputed: bool
    open: bool


class Example(NamedTuple):
    """A training sample that is not suspected."""

    row: int
    name: str
    picture: str


class Card(NamedTuple):
    """A suspect. picture: its address, empty for tables. brief: (feature, value, usual for the given class)."""

    row: int
    name: str
    given: str
    suggested: str
    given_code: int
    suggested_code: int
    score: str
    rank: int
    picture: str
    brief: list[tuple[str, str, str]]
    features: list[Feature]
    like_label: list[Example]
    like_suggested: list[Example]
    mark: Mark
    address: str


class Page(NamedTuple):
    """A page of suspects.

    matching: how many suspects fit the filters. first: place of the first one shown. last: what the reviewer decided
    last, in words.
    """

    cards: list[Card]
    focus: int
    matching: int
    first: int
    before: str
    after: str
    progress: dict[str, str | int]
    last: str


class Views:
    """Views of one review."""

    def __init__(self, review: Review):
        self.review = review
        self.pictures = Pictures(review.dataset) if "table" not in review.dataset.facts else None
        self.rows = TableRows(review.dataset) if "table" in review.dataset.facts else None
        self._classes, self._pairs = review.class_counts(), review.pair_counts()
        # a browser keeps pictures by address, and another run may answer at the same one later
        self.version = quote((review.store.fact("audit") or "")[:12])

    def page(self, query: Query, reviewer: str) -> Page:
        """The suspects that a query shows, the one in focus among them."""
        review = self.review
        with review.standing() as standing:
            found = review.select(query.selection, reviewer, standing)
            ranks = review.audited.rank[found]
            first = int(np.searchsorted(ranks, query.start))
            place = np.flatnonzero(found == query.focus)
            if len(place) and not first <= place[0] < first + PER_PAGE:
                first = int(place[0]) // PER_PAGE * PER_PAGE
            if first >= len(found):
                first = max(0, (len(found) - 1) // PER_PAGE * PER_PAGE)
            shown = found[first : first + PER_PAGE].tolist()
            start = int(ranks[first]) if shown else 1
            marks = [self.mark(row, reviewer, standing) for row in shown]
            progress = progress_texts(review.progress(standing))
            last = ""
            if (made := standing.last_of(reviewer)) is not None:
                name = review.audited.name[made.row]
                last = f"Your last decision: {name} {self.mark(made.row, reviewer, standing).own}."
        cards = [self._card(row, mark, query.at(start, row).address) for row, mark in zip(shown, marks, strict=True)]
        before = query.at(int(ranks[max(0, first - PER_PAGE)])).address if first else ""
        after = query.at(int(ranks[first + PER_PAGE])).address if first + PER_PAGE < len(found) else ""
        focus = shown.index(query.focus) if query.focus in shown else 0
        return Page(cards, focus, len(found), first + 1, before, after, progress, last)

    def following(self, query: Query, row: int, reviewer: str) -> int | None:
        """The suspect that comes after a row, decided or not, in what a query shows."""
        with self.review.standing() as standing:
            found = self.review.select(query.selection, reviewer, standing)
        rank = self.review.audited.rank
        later = found[rank[found] > rank[row]]
        return int(later[0]) if len(later) else None

    def mark(self, row: int, reviewer: str, standing: Standing) -> Mark:
        """What was decided on a row, as a reviewer sees it."""
        names, current = self.review.class_names, standing.current(row)
        own, kind = "", ""
        if (mine := current.pop(reviewer, None)) is not None:
            kind = mine.action
            own = {"keep": "kept", "skip": "skipped"}.get(kind, "")
            if not own and mine.label is not None:
                own = f"changed to {names[mine.label]}"
        others = "; ".join(
            f"{name}: {'skipped' if decision.label is None else names[decision.label]}"
            for name, decision in sorted(current.items())
        )
        nobody = bool(standing.label[row] == UNDECIDED)
        return Mark(row, self.review.audited.name[row], own, kind, others, bool(standing.disagreement[row]), nobody)

    def filters(self, query: Query) -> dict[str, list[tuple[str, str, bool]]]:
        """Choices of the three filters as (value, text, chosen)."""
        names, chosen = self.review.class_names, query.selection
        listed = self._pairs[:MOST_PAIRS]
        listed += [pair for pair in self._pairs[MOST_PAIRS:] if pair[0] == chosen.pair]
        return {
            "status": [(status, text, status == chosen.status) for status, text in STATUSES.items()],
            "class": [(str(c), f"{names[c]} ({count})", c == chosen.given) for c, count in self._classes],
            "pair": [
                (f"{a}-{b}", f"{names[a]} → {names[b]} ({count})", (a, b) == chosen.pair) for (a, b), count in listed
            ],
        }

    def _card(self, row: int, mark: Mark, address: str) -> Card:
        audited, names = self.review.audited, self.review.class_names
        given, suggested = int(audited.label[row]), int(audited.suggested[row])
        like_label, like_suggested = list(audited.like_label[row]), list(audited.like_suggested[row])
        features = []
        if self.rows is not None:
            features = self.rows.features(row, given, suggested, like_label, like_suggested)
        return Card(
            row=row,
            name=audited.name[row],
            given=names[given],
            suggested=names[suggested],
            given_code=given,
            suggested_code=suggested,
            score=f"{audited.score[row]:.3f}",
            rank=int(audited.rank[row]),
            picture=self._address(row),
            brief=[(f.name, f.value, f.usual[0]) for f in features[:CARD_FEATURES]],
            features=features,
            like_label=[self._example(r) for r in like_label],
            like_suggested=[self._example(r) for r in like_suggested],
            mark=mark,
            address=address,
        )

    def _example(self, row: int) -> Example:
        return Example(row, self.review.audited.name[row], self._address(row))

    def _address(self, row: int) -> str:
        return f"/image/{row}.png?v={self.version}" if self.pictures else ""


def progress_texts(progress: Progress) -> dict[str, str | int]:
    """The progress as numbers and sentences, by the names that the page gives their places."""
    left = ""
    if progress.left is not None:
        value, low, high, size = progress.left
        interval = f"95 % interval {low:.0f} to {high:.0f}"
        left = f"about {value:.0f} wrong labels left among all {size} rows by estimate, {interval}"
    return {
        "decided": progress.decided,
        "suspects": progress.suspects,
        "corrections": _counted(progress.corrections, "correction"),
        "disagreements": _counted(progress.disagreements, "disagreement"),
        "left": left,
    }


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
