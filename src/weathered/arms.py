"""Arms of a comparison: how they are written, crossed, planned and refused."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from weathered.assemble import Use, entry_of, resolve
from weathered.audit.kept import check_audits
from weathered.core.errors import DataError, SpecError, WeatheredError
from weathered.core.spec import parse, split_specs
from weathered.data.prepare import Splits, prepare
from weathered.metrics import Metric, metric_named
from weathered.recipe import DataOptions, Recipe
from weathered.training import build_run

Arms = dict[str, tuple[str, ...]]
"""Name -> methods."""


def parse_arms(text: str, option: str = "--arms") -> Arms:
    """`ce,logitclip,jocor:co_lambda=0.9,ramp=0.1+mixup` to arm name -> methods.

    A comma separates arms unless what follows is `key=value`, which belongs to the method before it; `+` joins the
    methods of one arm. An arm is named after its methods, with their options where two arms would share a name.
    option: where the text was given, for errors. Raises SpecError for an empty or repeated arm.
    """
    named: dict[str, tuple[str, ...]] = {}
    for arm in split_specs(text):
        if not arm:
            raise SpecError(f"{option} '{text}' has an empty arm; separate arms by single commas.")
        if arm in named:
            raise SpecError(f"{option} names '{arm}' twice.")
        named[arm] = tuple(part.strip() for part in re.split(r"\+(?=\s*[A-Za-z])", arm))
    short = {arm: "+".join(part.partition(":")[0] for part in use) for arm, use in named.items()}
    counts = Counter(short.values())
    return {short[arm] if counts[short[arm]] == 1 else arm: use for arm, use in named.items()}


def crossed(arms: Arms, others: Arms) -> Arms:
    """All arms of both alone, then each of `arms` together with each of `others`.

    An arm that is nothing but plain cross entropy is what every other one adds to, so it stands alone. Raises
    SpecError for a name that both have.
    """
    if both := [name for name in arms if name in others]:
        raise SpecError(f"'{both[0]}' is both among the arms and among those they are crossed with; name it once.")
    pairs = {
        f"{name}+{other}": (*use, *others[other])
        for name, use in arms.items()
        if [(u.slug, u.options) for u in resolve(use)] != [("cross-entropy", {})]
        for other in others
    }
    return {**arms, **others, **pairs}


def ablated(arms: Arms) -> Arms:
    """All arms, and each that has several parts also without each one of them and with each alone.

    Bundles are taken apart. What every run has anyway, such as plain cross entropy, is no part. Of arms with the same
    parts the first stays. Raises SpecError where no arm has several parts.
    """
    found = dict(arms)
    known = {_identity(resolve(use)) for use in arms.values()}
    several = False
    for name, use in arms.items():
        parts = [part for part in resolve(use) if part.slug not in DEFAULTS]
        if len(parts) < 2:
            continue
        several = True
        titles = [part.slug if [p.slug for p in parts].count(part.slug) == 1 else str(part) for part in parts]
        fewer = {
            f"{name} without {title}": [other for other in parts if other is not part]
            for title, part in zip(titles, parts, strict=True)
        }
        alone = {f"only {title}": [part] for title, part in zip(titles, parts, strict=True)}
        for title, kept in (fewer | alone).items():
            if _identity(kept) not in known:
                known.add(_identity(kept))
                found[title] = tuple(map(str, kept))
    if not several:
        raise SpecError(
            f"--ablate takes arms of several parts apart, but none of {', '.join(arms)} has more than one; leave it "
            "out."
        )
    return found


DEFAULTS = ("cross-entropy", "supervised", "plain")
"""Methods that fill a slot where a recipe names none."""


def _identity(parts: Sequence[Use]) -> tuple[str, ...]:
    """What tells the parts of one arm from those of another."""
    return tuple(str(part) for part in parts if part.slug not in DEFAULTS)


def check_comparison(
    arms: Arms, seeds: Sequence[int], baseline: str | None, metric: str | None, audits: Sequence[str] = ()
) -> tuple[str, Metric | None]:
    """The baseline, `ce` or the first arm by default, and the metric, if one is asked for.

    audits: made of every run. Raises SpecError for names that are not known, or a metric that takes another audit.
    """
    check_audits(audits)
    baseline = baseline or ("ce" if "ce" in arms else next(iter(arms)))
    if baseline not in arms:
        raise SpecError(f"the baseline '{baseline}' is not among the arms: {', '.join(arms)}.")
    if len(arms) < 2 or not seeds or len(set(seeds)) < len(seeds):
        raise SpecError(f"a comparison needs at least two arms and different seeds, got {len(arms)} and {list(seeds)}.")
    asked = None if metric is None else metric_named(metric)
    if asked is not None and asked.audit not in (None, *audits):
        raise SpecError(f"'{asked.name}' is measured by an audit; add --audits {asked.audit}.")
    return baseline, asked


def plan(recipe: Recipe, arms: Arms, seeds: Sequence[int]) -> dict[str, list[Recipe]]:
    """One recipe per arm and seed; the shared recipe's own methods come first in every arm.

    Data makers among an arm's methods, such as corrections of labels, are applied to its training data alone.
    """
    planned = {}
    for name, use in arms.items():
        makers = tuple(spec for spec in use if entry_of(parse(spec)[0]).slot == "maker")
        data = replace(recipe.data, make=(*recipe.data.make, *makers))
        parts = tuple(spec for spec in use if spec not in makers)
        arm = replace(recipe, data=data, use=(*recipe.use, *parts))
        planned[name] = [arm.with_settings(seed=seed) for seed in seeds]
    return planned


def refusals(
    planned: dict[str, list[Recipe]], shared: DataOptions | None = None, metric: Metric | None = None
) -> dict[str, WeatheredError]:
    """Arms that cannot be built on their data, and why; nothing is trained.

    shared: the data without makers of an arm; what is wrong with them is raised as it is, since no arm is to blame.
    metric: raises DataError if the data give no such figure.
    """
    prepared: dict[tuple[DataOptions, bool], Splits] = {}
    refused: dict[str, WeatheredError] = {}
    for name, recipes in planned.items():
        first = recipes[0]
        try:
            first.check_protocols()
        except WeatheredError as error:
            refused[name] = error
            continue
        # few-shot methods leave classes out
        key = first.data, first.few_shot is not None
        try:
            if key not in prepared:
                # one at a time: arms mostly share their data
                prepared = {key: prepare(first)}
        except WeatheredError as error:
            if first.data == shared:
                raise
            refused[name] = error
            continue
        test = prepared[key].test
        if metric is not None and not metric.measured_on(test.is_segmentation, test.has_groups, test.is_captioned):
            raise DataError(f"{first.data.train}: there is no '{metric.name}' of these data; rank by another metric.")
        try:
            build_run(first, prepared[key])
            if any(use.slug == "distillation" for use in resolve(first.use)):
                # each seed may test on other rows, which the teacher may have been trained on
                for other in recipes[1:]:
                    if other.data_seed != first.data_seed:
                        build_run(other, prepare(other))
        except WeatheredError as error:
            refused[name] = error
    return refused
