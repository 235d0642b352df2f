"""The address of a page: which suspects it shows, from which rank on, and which one is in focus."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast
from urllib.parse import parse_qsl, urlencode

from weathered.core.errors import SpecError
from weathered.review.review import STATUSES, Selection, Status


@dataclass(frozen=True)
class Query:
    """selection: the filters. start: rank of the first suspect on the page. focus: row of the one in focus."""

    selection: Selection = field(default_factory=Selection)
    start: int = 1
    focus: int | None = None

    @classmethod
    def parse(cls, values: Mapping[str, str], classes: int) -> "Query":
        """From the fields of an address; empty ones count as not given. Raises SpecError for one that does not fit."""
        status = values.get("status") or "open"
        if status not in STATUSES:
            raise SpecError(f"there is no status '{status}'; there are: {', '.join(STATUSES)}.")
        pair = None
        if text := values.get("pair"):
            given, _, suggested = text.partition("-")
            pair = (_number(given, "pair", classes), _number(suggested, "pair", classes))
        return cls(
            Selection(
                cast(Status, status),
                _number(values["class"], "class", classes) if values.get("class") else None,
                pair,
            ),
            _number(values["start"], "start") if values.get("start") else 1,
            _number(values["focus"], "focus") if values.get("focus") else None,
        )

    @classmethod
    def parse_text(cls, text: str, classes: int) -> "Query":
        """From the part of an address behind the question mark. Raises SpecError for one that does not fit."""
        try:
            fields = dict(parse_qsl(text, max_num_fields=20))
        except ValueError as error:
            raise SpecError("the address of the page has more than 20 fields.") from error
        return cls.parse(fields, classes)

    @property
    def text(self) -> str:
        """The part of an address behind the question mark, defaults left out; `parse_text` reads it back."""
        chosen = self.selection
        fields = {
            "status": None if chosen.status == "open" else chosen.status,
            "class": chosen.given,
            "pair": None if chosen.pair is None else f"{chosen.pair[0]}-{chosen.pair[1]}",
            "start": None if self.start <= 1 else self.start,
            "focus": self.focus,
        }
        return urlencode({name: value for name, value in fields.items() if value is not None})

    @property
    def address(self) -> str:
        return f"/?{self.text}"

    def at(self, start: int, focus: int | None = None) -> "Query":
        """The same filters at another place."""
        return replace(self, start=start, focus=focus)


def _number(text: str, name: str, below: int = 10**12) -> int:
    # more digits would be no row of anything
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) < below):
        raise SpecError(f"'{name}' in the address must be a whole number from 0 on, below {below}, got '{text[:40]}'.")
    return int(text)
