"""Notes on data that a recipe gives and nothing reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from weathered.core.facts import traits_of
from weathered.core.run import Run


def unread_data(run: Run) -> list[str]:
    """A sentence for each auxiliary data set, and for the validation set, that no part of the run needs."""
    parts = [run.procedure, *(part for _, part in run.parts)]
    needed = {fact for part in parts for fact in traits_of(part).needs}
    unread = [] if "aux" in needed else [name for name in run.aux_data if f"aux:{name}" not in needed]
    notes = [f"The auxiliary data '{name}' are read by no method." for name in unread]
    if run.validation is not None and "validation" not in needed:
        notes.append(
            f"The validation set is read by no method: its {len(run.validation)} rows are trained on only without "
            "--validation."
        )
    return notes


def unread_by_all(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The sentences that the records of all runs have in common: what one arm reads was not given in vain."""
    found = [record.get("unread", []) for record in records]
    return tuple(note for note in (found[0] if found else []) if all(note in notes for notes in found))
