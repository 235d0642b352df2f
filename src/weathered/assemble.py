"""From names to parts: resolve what a recipe uses, with every default, and build it for given data."""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weathered.core.errors import Incompatible, SpecError
from weathered.core.facts import traits_of
from weathered.core.roles import BatchTransform, Loss
from weathered.core.settings import Settings
from weathered.core.spec import as_annotated, check_options, near, option_types, parameters, parse, render
from weathered.data.dataset import Dataset
from weathered.registry import ALIASES, TABLE, TRAINING_SLOTS, Entry
from weathered.tricks.base import with_tricks

FILLED = ("class_counts", "num_classes", "group_counts")
"""Constructor arguments that the data fill; a user never writes them."""

AFTERWARDS = ("learner", "few-shot")
"""Slots of methods that take over the trained network, so they are no part of training."""


@dataclass(frozen=True)
class Use:
    """One method of a recipe with all its options, defaults included."""

    slug: str
    options: Mapping[str, Any]

    @property
    def entry(self) -> Entry:
        return TABLE[self.slug]

    def __str__(self) -> str:
        return render(self.slug, self.options)


def entry_of(slug: str) -> Entry:
    """The table's entry for a slug or alias; raises SpecError with a suggestion."""
    slug = ALIASES.get(slug, slug)
    if slug not in TABLE and (joined := [part.strip() for part in re.split("[+,]", slug)])[1:]:
        if not all(joined):
            raise SpecError(f"no method '{slug}': a name beside its '{'+' if '+' in slug else ','}' is empty.")
        each = " ".join(f"--use {part}" for part in joined)
        raise SpecError(f"no method '{slug}'. One --use names one method, as in {each}; only --arms joins them by '+'.")
    if slug not in TABLE:
        raise SpecError(f"no method '{slug}'.{near(slug, [*TABLE, *ALIASES])} 'weathered list' shows all {len(TABLE)}.")
    return TABLE[slug]


def import_part(entry: Entry) -> Any:
    """The class behind an entry."""
    module, _, name = entry.path.partition(":")
    return getattr(importlib.import_module(module), name)


def resolve(specs: Sequence[str]) -> list[Use]:
    """Specs such as `jocor:co_lambda=0.9` to uses with every default written out; bundles are taken apart.

    Raises SpecError for an unknown name or option, a value of the wrong type, two parts in a slot, two methods that
    take over the trained network, or two tricks that set the same.
    """
    uses: list[Use] = []
    for text in specs:
        slug, options = parse(text)
        uses += _expand(entry_of(slug), options)
    for slot in ("sampler", "procedure", "loss", "reweight", "stepper", "probe", "learner", "few-shot"):
        rivals = [use.slug for use in uses if use.entry.slot == slot]
        if len(rivals) > 1:
            twice = all(traits_of(import_part(TABLE[slug])).evens_classes for slug in rivals[:2])
            outer = None if twice else next((slug for slug in reversed(rivals[:2]) if _wraps(slug)), None)
            if rivals[0] == rivals[1]:
                raise SpecError(_twice(rivals[0]))
            inner = rivals[0] if outer == rivals[1] else rivals[1]
            wrap = f" Or wrap one in the other: {outer}:base={inner}." if outer else ""
            raise SpecError(f"{' and '.join(rivals)} both fill the slot '{slot}', which holds one. Drop one.{wrap}")
    last = [use.slug for use in uses if use.entry.slot in AFTERWARDS]
    if len(last) > 1:
        raise SpecError(f"{' and '.join(last)} both take over the trained network. Drop one of the two.")
    setters: dict[str, str] = {}
    for slug in (use.slug for use in uses if use.entry.slot == "trick"):
        changes = import_part(TABLE[slug]).changes
        rival = setters.get(changes)
        if rival is not None:
            raise SpecError(_twice(slug) if slug == rival else f"{rival} and {slug} both set {changes}. Drop one.")
        setters[changes] = slug
    return uses


def _twice(slug: str) -> str:
    bundle = next((entry.slug for entry in TABLE.values() if slug in entry.parts), None)
    return f"{slug} is there twice{f', perhaps once in a bundle such as {bundle}' if bundle else ''}; name it once."


def apply_tricks(uses: Sequence[Use], settings: Settings, model: str) -> tuple[Settings, str]:
    """Settings and model of a recipe with the tricks among its methods. Raises Incompatible where one does not fit."""
    return with_tricks([build(use) for use in uses if use.entry.slot == "trick"], settings, model)


def _wraps(slug: str) -> bool:
    return "base" in parameters(import_part(TABLE[slug]))


def _expand(entry: Entry, options: dict[str, Any]) -> list[Use]:
    if entry.parts:
        takers = {part: parameters(import_part(TABLE[part])) for part in entry.parts}
        for key in options:
            if not any(key in known for known in takers.values()):
                known = [k for names in takers.values() for k in names if k not in FILLED]
                raise SpecError(f"{entry.slug} has no option '{key}'.{near(key, known)} It has: {', '.join(known)}.")
        options = {**dict(entry.defaults), **options}
        return [
            use
            for part, known in takers.items()
            for use in _expand(TABLE[part], {k: v for k, v in options.items() if k in known})
        ]
    factory = import_part(entry)
    check_options(entry.slug, factory, options, hidden=FILLED)
    hints = option_types(factory)
    resolved = {}
    for name, parameter in parameters(factory).items():
        if name in FILLED:
            continue
        if name in options:
            resolved[name] = as_annotated(options[name], hints.get(name))
        elif parameter.default is parameter.empty:
            raise SpecError(f"{entry.slug} needs the option '{name}', as in {entry.slug}:{name}=...")
        elif parameter.default is not None:
            resolved[name] = parameter.default
    return [Use(entry.slug, resolved)]


def build(use: Use, dataset: Dataset | None = None) -> Any:
    """The part a use names. dataset: fills class_counts, num_classes and group_counts.

    Raises SpecError naming the part if an option is out of range.
    """
    factory = import_part(use.entry)
    options = dict(use.options)
    hints = option_types(factory)
    for name, value in options.items():
        if isinstance(value, str) and _is_loss(hints.get(name)):
            inner = resolve([value])
            if len(inner) != 1 or inner[0].entry.slot != "loss":
                raise SpecError(f"{use.slug}: option '{name}' takes a loss, got '{value}'.")
            options[name] = build(inner[0], dataset)
        elif isinstance(value, (list, tuple)) and BatchTransform in getattr(hints.get(name), "__args__", ()):
            inner = [one for text in value for one in resolve([text])]
            if wrong := next((one for one in inner if one.entry.slot != "transform"), None):
                raise SpecError(f"{use.slug}: option '{name}' takes transforms, {wrong.slug} is a {wrong.entry.slot}.")
            options[name] = [build(one, dataset) for one in inner]
        elif isinstance(value, str) and hints.get(name) is Dataset:
            from weathered.data.sources import load

            options[name] = load(value)
    known = parameters(factory)
    for name in FILLED:
        if name in known:
            if dataset is None:
                raise SpecError(f"{use.slug} needs '{name}' from the data.")
            options[name] = getattr(dataset, name)
    if "group_counts" in known and dataset is not None:
        _check_groups(use, dataset)
    try:
        return factory(**options)
    except (ValueError, TypeError) as error:
        raise SpecError(f"{use.slug}: {str(error).rstrip('.')}.") from error


def _check_groups(use: Use, dataset: Dataset) -> None:
    # a part knows groups by their numbers alone
    for name, count in zip(dataset.names_of_groups, dataset.group_counts.tolist(), strict=True):
        if not count:
            raise SpecError(
                f"{use.slug}: every group needs at least one training sample, group '{name}' has 0; leave it out of "
                "the data, or add samples of it to the training data."
            )


def _is_loss(annotation: Any) -> bool:
    return annotation is Loss or Loss in getattr(annotation, "__args__", ())


@dataclass(frozen=True)
class Parts:
    """The parts of a run by slot, ready for `Run(**parts.slots)`."""

    slots: dict[str, Any] = field(default_factory=dict)

    @property
    def all(self) -> list[Any]:
        return [part for value in self.slots.values() for part in (value if isinstance(value, list) else [value])]

    @property
    def head(self) -> str:
        """The head that the parts ask for."""
        return "cosine" if any("cosine_head" in traits_of(part).needs for part in self.all) else "linear"


def build_parts(uses: Sequence[Use], dataset: Dataset) -> Parts:
    """All training parts of a recipe, without tricks, which are in its settings and model already.

    Raises SpecError for a method that is not a training part, Incompatible for one that counts classes where a learner
    lets training see some of them only.
    """
    slots: dict[str, Any] = {"transforms": [], "terms": []}
    learner = next((use.slug for use in uses if use.entry.slot == "learner"), None)
    last = next((use.slug for use in uses if use.entry.slot in AFTERWARDS), None)
    if last and dataset.is_segmentation:
        raise Incompatible(
            f"{last} works on one label for each sample, but these data have one for each pixel. Remove it, or use "
            "classification data."
        )
    for use in uses:
        slot = use.entry.slot
        if slot in (*AFTERWARDS, "trick"):
            continue
        if slot not in TRAINING_SLOTS:
            raise SpecError(
                f"{use.slug} is a {slot}, not a part of training; 'weathered show {use.slug}' says where it is used."
            )
        if learner and _counts_classes(use):
            raise Incompatible(
                f"{use.slug} needs samples of every class, but with {learner} the network is trained on the classes of "
                f"the first phase alone. Remove {use.slug}, or train on all classes at once without {learner}."
            )
        part = build(use, dataset)
        if learner and "caption_loss" in traits_of(part).provides:
            raise Incompatible(
                f"{use.slug} trains two towers without a classifier, and {learner} learns classes. Remove one of them."
            )
        if slot in ("transform", "term"):
            slots[slot + "s"].append(part)
        else:
            slots[slot] = part
    return Parts(slots)


def _counts_classes(use: Use) -> bool:
    """Whether the part, or a loss inside it, is told the class sizes or needs samples of every class."""
    texts = [*([use.options["base"]] if "base" in use.options else []), *use.options.get("parts", ())]
    inner, part = [one for text in texts for one in resolve([text])], import_part(use.entry)
    told = "class_counts" in parameters(part) or "class_counts" in traits_of(part).needs
    return told or any(map(_counts_classes, inner))
