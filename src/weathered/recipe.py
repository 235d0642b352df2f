"""Recipe: everything that determines a run, as TOML on the outside and one canonical form inside."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from weathered.assemble import Use, apply_tricks, resolve
from weathered.core.errors import SpecError
from weathered.core.settings import Settings
from weathered.core.spec import as_annotated, fits, near, option_types
from weathered.fewshot.episodes import EpisodeOptions


def parse_fold(text: str) -> tuple[int, int]:
    """(number from 0, number of folds) of `2/5`. Raises SpecError for anything else."""
    number, slash, of = text.partition("/")
    good = slash and number.isascii() and number.isdigit() and of.isascii() and of.isdigit() and len(of) < 5
    if not good or not 1 <= int(number) <= int(of) or int(of) < 2:
        raise SpecError(f"fold must be given as in 2/5, at least 2 folds counted from 1, got '{text}'")
    return int(number) - 1, int(of)


EPISODES = ("ways", "shots", "queries", "episodes")
"""Options of the episodes of few-shot methods, with the defaults of `EpisodeOptions`."""

LATER = ("group_column", "caption_column", "mask_column", "ignore_label", "rows", "test_rows")
"""Options that count only where they are given, so that runs from before there were any keep their names."""


LATER_SETTINGS = {"lr_samples": None, "no_bias_decay": False}
"""Settings that likewise count only where they differ from these values."""


@dataclass(frozen=True)
class DataOptions:
    """Where the data come from and what is done to them before training.

    train, test: a path or `name:options`; without a test set a quarter is held out. label_column: the labels to
    train on. clean_column: the truth, for scoring only. validation: share of the training set that parts may read.
    make: data makers in order, as in `symmetric:rate=0.4`. aux: data without labels for methods that use them, as in
    `ood=patches` or `ood=folder:PATH`. limit: at most this many training rows, at random.
    not_features: columns of a table that are left out. group_column: the group of each row, such as a sensitive
    attribute or a domain; no feature. caption_column: the caption of each image, in words. mask_column: masks in place
    of labels, the class of each pixel. ignore_label: the value of pixels without a class, besides 255.
    rows, test_rows: those where a column has a value, as in
    `split=train`; test_rows without `test` are rows of the same file.
    skip_bad: drop unreadable images and count them. image_size: resize to this many pixels.
    fold: as in `2/5`, one of so many stratified parts of the training set takes the place of the test set, counted
    from 1, so that a model can be asked about training rows that it never saw.
    base_classes, phases: for recipes with an incremental learner: classes of the first phase (half by default) and
    the number of phases that bring the others (one class each by default).
    ways, shots, queries, episodes: for recipes with a few-shot method, which trains on the base classes: classes of an
    episode, rows of each that are given with their labels, rows of each that are asked for, and how many episodes.
    """

    train: str = "digits"
    test: str | None = None
    label_column: str | None = None
    test_label_column: str | None = None
    clean_column: str | None = None
    not_features: tuple[str, ...] = ()
    group_column: str | None = None
    caption_column: str | None = None
    mask_column: str | None = None
    ignore_label: int | None = None
    rows: str | None = None
    test_rows: str | None = None
    root: str | None = None
    validation: float = 0.0
    make: tuple[str, ...] = ()
    aux: tuple[str, ...] = ()
    limit: int | None = None
    skip_bad: bool = False
    image_size: int | None = None
    fold: str | None = None
    base_classes: int | None = None
    phases: int | None = None
    ways: int | None = None
    shots: tuple[int, ...] | None = None
    queries: int | None = None
    episodes: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise SpecError(f"validation must be in [0, 1), got {self.validation}")
        if self.ignore_label is not None and not 0 <= self.ignore_label <= 255:
            raise SpecError(f"ignore_label must be in [0, 255], got {self.ignore_label}")
        if self.image_size is not None and not 4 <= self.image_size <= 4096:
            raise SpecError(f"image_size must be in [4, 4096] pixels, got {self.image_size}")
        if self.fold is not None:
            parse_fold(self.fold)
        names = [spec.partition("=")[0] for spec in self.aux]
        if len(set(names)) < len(names):
            raise SpecError(f"aux gives one name twice: {', '.join(names)}")
        if self.limit is not None and self.limit < 2:
            raise SpecError(f"limit must be at least 2, got {self.limit}")
        try:
            self.episode_options.check()
        except ValueError as error:
            raise SpecError(str(error)) from error

    @property
    def episode_options(self) -> EpisodeOptions:
        """How episodes are drawn, defaults filled in."""
        given = {name: getattr(self, name) for name in EPISODES if getattr(self, name) is not None}
        return EpisodeOptions(**given, base_classes=self.base_classes)


@dataclass(frozen=True)
class Recipe:
    """Data, model, methods and settings of one run. use: methods as `slug:key=value`. head: auto, linear, cosine."""

    data: DataOptions = field(default_factory=DataOptions)
    model: str = "cnn_small"
    head: str = "auto"
    use: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.head not in ("auto", "linear", "cosine"):
            raise SpecError(f"head must be auto, linear or cosine, got '{self.head}'")

    @property
    def data_seed(self) -> int:
        """The seed of splits and makers: the run's own unless the data fix another."""
        return self.settings.seed if self.data.seed is None else self.data.seed

    @property
    def few_shot(self) -> Use | None:
        """The few-shot method in use, or None."""
        return next((use for use in resolve(self.use) if use.entry.slot == "few-shot"), None)

    def check_protocols(self) -> None:
        """Raise SpecError for options of a protocol whose method is not in use."""
        learner = next((use for use in resolve(self.use) if use.entry.slot == "learner"), None)
        few_shot, data = self.few_shot, self.data
        if data.phases is not None and learner is None:
            raise SpecError("phases need an incremental learner, as in --use acil.")
        if data.base_classes is not None and learner is None and few_shot is None:
            raise SpecError(
                "base_classes need an incremental learner or a few-shot method, as in --use acil or --use tfh."
            )
        given = [name for name in EPISODES if getattr(data, name) is not None]
        if given and few_shot is None:
            raise SpecError(f"{' and '.join(given)} would do nothing without a few-shot method, as in --use tfh.")

    @property
    def applied(self) -> "Recipe":
        """The recipe with its tricks in settings and model, where they win over what was written there.

        They stay among its methods, and applied again they change nothing. Raises Incompatible where one does not fit.
        """
        settings, model = apply_tricks(resolve(self.use), self.settings, self.model)
        return replace(self, settings=settings, model=model)

    def idle_tricks(self) -> list[str]:
        """A sentence for each trick without which settings and model were the same."""
        uses, applied, notes = resolve(self.use), self.applied, []
        for use in (use for use in uses if use.entry.slot == "trick"):
            without = apply_tricks([other for other in uses if other is not use], self.settings, self.model)
            if without == (applied.settings, applied.model):
                notes.append(f"{use.slug} changes nothing here: the recipe's settings or model say the same.")
        return notes

    def canonical(self) -> dict[str, Any]:
        """The recipe with its tricks and every default of every method written out; equal recipes give equal trees."""
        tree = asdict(self.applied)
        tree["data"]["seed"] = self.data_seed
        few_shot = self.few_shot is not None
        for name in (*LATER, *EPISODES):
            if few_shot and name in EPISODES:
                tree["data"][name] = getattr(self.data.episode_options, name)
            elif tree["data"][name] is None:
                del tree["data"][name]
        for name, usual in LATER_SETTINGS.items():
            if tree["settings"][name] == usual:
                del tree["settings"][name]
        hints = option_types(Settings)
        tree["settings"] = {key: as_annotated(value, hints[key]) for key, value in tree["settings"].items()}
        tree["use"] = [{"slug": use.slug, "options": dict(use.options)} for use in resolve(self.use)]
        # neither changes a result: how often the state is saved, how many processes decode
        for name in ("checkpoint_seconds", "workers"):
            del tree["settings"][name]
        return json.loads(json.dumps(tree))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name the run's folder."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()[:12]

    def with_settings(self, **changes: Any) -> "Recipe":
        return replace(self, settings=replace(self.settings, **changes))

    def to_tree(self) -> dict[str, Any]:
        """A tree that `from_tree` reads back, and that TOML can hold."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], where: str = "recipe") -> "Recipe":
        """Build a recipe from a nested mapping; raises SpecError naming an unknown or mistyped key."""
        given = dict(tree)
        data = _record(DataOptions, given.pop("data", {}), f"{where} [data]")
        settings = _record(Settings, given.pop("settings", {}), f"{where} [settings]")
        return _record(cls, {**given, "data": data, "settings": settings}, where)

    @classmethod
    def from_file(cls, path: Path) -> "Recipe":
        """Read a TOML recipe; raises SpecError if it is missing, not TOML, or holds an unknown key."""
        try:
            tree = tomllib.loads(path.read_text())
        except OSError as error:
            raise SpecError(f"cannot read the recipe {path}: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"the recipe {path} is not valid TOML: {error}.") from error
        return cls.from_tree(tree, str(path))


def _record(kind: type, given: Any, where: str) -> Any:
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise SpecError(f"{where} must be a table of keys and values, got {given!r}.")
    known = [f.name for f in fields(kind)]
    hints = option_types(kind)
    values = {}
    for key, value in given.items():
        if key not in known:
            raise SpecError(f"{where} has no key '{key}'.{near(key, known)} It has: {', '.join(known)}.")
        if isinstance(value, list):
            value = tuple(value)
        if not fits(value, hints[key]):
            raise SpecError(f"{where}: '{key}' got {value!r}, which does not fit.")
        values[key] = as_annotated(value, hints[key])
    try:
        return kind(**values)
    except ValueError as error:
        raise SpecError(f"{where}: {error}.") from error
