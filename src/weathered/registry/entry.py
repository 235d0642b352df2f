"""One row of the table of methods, and the problems that methods are for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One method.

    slug: its name on the command line. path: module and class. slot: the contract it fills.
    problems: what it is for. paper: first author, venue, year. summary: one line. card: the method it belongs to,
    where a method has several parts. parts: for a bundle, the slugs it stands for. defaults: for a bundle, options that
    its parts are given where a user says nothing. claimed: whether the claim of `card` is about this part, too.
    """

    slug: str
    path: str
    slot: str
    problems: tuple[str, ...]
    paper: str
    summary: str
    card: str = ""
    parts: tuple[str, ...] = ()
    defaults: tuple[tuple[str, float], ...] = ()
    claimed: bool = True

    @property
    def class_name(self) -> str:
        return self.path.partition(":")[2]

    @property
    def claim(self) -> str:
        """The slug of the claim that says what was measured of it."""
        return self.card if self.card and self.claimed else self.slug


NOISE, TAIL, MIX, OOD, ROBUST, CALIBRATION, ARRIVING, FEW, DOMAINS, SHORTCUT, POISON = (
    "noisy-labels",
    "long-tail",
    "mixing",
    "ood",
    "robustness",
    "calibration",
    "new-classes",
    "few-shot",
    "new-domains",
    "shortcuts",
    "poisoned-data",
)

PROBLEMS = {
    NOISE: "some labels are wrong",
    TAIL: "some classes are rare",
    MIX: "more and smoother training data by mixing samples",
    OOD: "inputs unlike the training data must be recognised",
    ROBUST: "inputs may be corrupted or chosen by an attacker",
    CALIBRATION: "confidence must mean something",
    ARRIVING: "classes arrive later",
    FEW: "new classes come with a few samples each",
    SHORTCUT: "a cue that has nothing to do with the class follows the label in training",
    DOMAINS: "the model is meant for places that its training data do not come from",
    POISON: "someone may have planted a trigger in the data",
}
