"""What the training of an arm minimised, read off its run, and what follows for reading its curves."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from weathered.assemble import Use, import_part
from weathered.core.procedure import Procedure
from weathered.incremental.recipe_run import phases_of
from weathered.losses.cross_entropy import CrossEntropy
from weathered.recipe import Recipe
from weathered.registry import TRAINING_SLOTS


class Objective(NamedTuple):
    """What an arm's training loss is the mean of.

    parts: the methods that shape it, with their options; none where it is the plain cross entropy of the labels.
    base: (classes of the base phase, all classes) where an incremental learner takes over from a base network.
    """

    parts: tuple[str, ...]
    base: tuple[int, int] | None


def objective_of(record: Mapping[str, Any]) -> Objective:
    """The objective of a run, from the content of its run.json."""
    uses = [Use(use["slug"], use["options"]) for use in record["resolved"]["use"]]
    base = None
    if any(use.entry.slot == "learner" for use in uses):
        classes = len(record["classes"])
        base = len(phases_of(Recipe.from_tree(record["recipe"]), classes)[0]), classes
    return Objective(tuple(str(use) for use in uses if _shapes_loss(use)), base)


def _shapes_loss(use: Use) -> bool:
    """Whether a method changes what is averaged: all parts of training but the stepper and the defaults."""
    slot, part = use.entry.slot, import_part(use.entry)
    if slot == "procedure":
        return part.loss is not Procedure.loss or part.update is not Procedure.update
    return slot in TRAINING_SLOTS and slot not in ("stepper", "probe") and part is not CrossEntropy


def loss_note(objectives: Mapping[str, Objective]) -> str:
    """How to read the curves of training loss. objectives: by arm."""
    plain = [name for name, objective in objectives.items() if not objective.parts]
    if len(set(objectives.values())) > 1:
        only = f" Only that of {' and '.join(plain)} is the plain cross entropy of the labels." if plain else ""
        return (
            "The training objective differs between the arms: a curve of loss compares with itself only, not with the "
            f"others.{only}{_base_note(objectives, 'is the loss of')}"
        )
    own = "" if plain else "It is the objective of the methods in use, not the plain cross entropy of the labels."
    return (own + _base_note(objectives, "is the loss of")).strip()


def test_note(objectives: Mapping[str, Objective]) -> str:
    """How to read the curves of test accuracy. objectives: by arm."""
    return _base_note(objectives, "scores").strip()


def _base_note(objectives: Mapping[str, Objective], verb: str) -> str:
    notes = []
    for name, objective in objectives.items():
        if objective.base is not None:
            some, every = objective.base
            where = f", on test images of all {every}" if verb == "scores" else ""
            notes.append(
                f" The curve of {name} {verb} its base network, which learns the {some} base classes only{where}; "
                "the classes that arrive later are learned afterwards, without epochs."
            )
    return "".join(notes)
