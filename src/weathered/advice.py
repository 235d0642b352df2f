"""Which recipes to try first on given data: rules over what a label audit estimates, backed by rows of the ledger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weathered.core.errors import DataError
from weathered.core.spec import render
from weathered.ledger import ledger_sentence, read_ledger
from weathered.recipe import DataOptions, Recipe
from weathered.registry import TABLE
from weathered.stats import Estimate

NOISY = 0.05
"""Share of wrong labels from which on methods against them come first, if the whole interval lies above."""
RARE = 10.0
"""Largest class over smallest from which on methods against a long tail come first."""
FOCUSED = 3.0
"""Wrong labels gather in pairs of classes if the most frequent confusion has this many times its even share."""
ADVISED = 3
LAST_EPOCH = "test accuracy after the last epoch"


@dataclass(frozen=True)
class Situation:
    """What is known of training data. noise: estimated share of wrong labels. imbalance: largest class over smallest.

    focus: mean over classes of the share that the most frequent confusion has of a class's wrong labels, times the
    number of other classes; 1 where wrong labels spread evenly.
    """

    rows: int
    num_classes: int
    noise: Estimate
    imbalance: float
    focus: float

    @property
    def noisy(self) -> bool:
        return self.noise.low >= NOISY

    @property
    def tailed(self) -> bool:
        return self.imbalance >= RARE


@dataclass(frozen=True)
class Advice:
    """One recipe to try: its methods, why, and what the ledger says of it."""

    use: tuple[str, ...]
    reason: str
    ledger: str
    shown: bool


@dataclass(frozen=True)
class _Rule:
    slug: str
    options: Callable[[Situation], dict[str, Any]]
    fits: Callable[[Situation], bool]
    reason: Callable[[Situation], str]


def _rate(s: Situation) -> float:
    return round(min(s.noise.value, 0.9 * (1 - 1 / s.num_classes)), 2)


def _share(s: Situation) -> str:
    return f"about {s.noise.value:.0%} of the labels seem wrong"


RULES: tuple[_Rule, ...] = (
    _Rule(
        "mixup",
        lambda s: {"alpha": 8.0 if s.noise.low >= 0.2 else 1.0},
        lambda s: s.noisy or not s.tailed,
        lambda s: (f"{_share(s)}; blended pairs cannot be learnt by heart" if s.noisy else
                   "nothing stands out in the labels, and blending pairs costs nothing"),
    ),
    _Rule(
        "jocor", lambda s: {"forget_rate": _rate(s)}, lambda s: s.noisy,
        lambda s: f"{_share(s)}; two networks leave out as many of the samples they find hard",
    ),
    _Rule(
        "co-teaching", lambda s: {"forget_rate": _rate(s)}, lambda s: s.noisy,
        lambda s: f"{_share(s)}; two networks pick the samples of small loss for each other",
    ),
    _Rule(
        "self-adaptive-training", lambda s: {}, lambda s: s.noisy,
        lambda s: f"{_share(s)}; targets move to what the network predicts steadily",
    ),
    _Rule(
        "forward-correction", lambda s: {"noise_rate": _rate(s)}, lambda s: s.noisy and s.focus < FOCUSED,
        lambda s: f"{_share(s)}, spread evenly enough over the classes for one rate to describe them",
    ),
    _Rule(
        "logitclip", lambda s: {}, lambda s: s.noisy,
        lambda s: f"{_share(s)}; a bound on the loss limits what each can do",
    ),
    _Rule(
        "alpha-loss", lambda s: {"alpha": 4.0 if s.noise.low >= 0.2 else 2.0}, lambda s: s.noisy,
        lambda s: f"{_share(s)}; labels that the network finds unlikely weigh less",
    ),
    _Rule(
        "ldam-drw", lambda s: {}, lambda s: s.tailed,
        lambda s: f"the largest class has {s.imbalance:.0f} times the samples of the smallest; rare ones get margins",
    ),
    _Rule(
        "absgd", lambda s: {"temperature": -1.0 if s.noisy else 1.0}, lambda s: s.noisy or s.tailed,
        lambda s: (f"{_share(s)}; samples of large loss weigh less" if s.noisy else
                   "some classes are rare; samples of large loss weigh more"),
    ),
    _Rule(
        "label-smoothing", lambda s: {}, lambda s: not s.noisy,
        lambda s: "few labels seem wrong; softened ones keep the confidence modest",
    ),
)  # fmt: skip


def situation_of(audit: dict[str, Any]) -> Situation:
    """What a label audit says, as `AuditResult.to_json()` gives it. Raises DataError if something is missing."""
    try:
        noise = audit["summary"]["estimated noise rate"]
        confusions = next(t for t in audit["tables"] if t["title"] == "Most frequent label confusions")
        classes = next(t for t in audit["tables"] if t["title"] == "Label noise per class")
    except (KeyError, StopIteration, TypeError) as error:
        raise DataError("the label audit of this run is damaged; make it again.") from error
    counts = [row[1] for row in classes["rows"]]
    present = [count for count in counts if count]
    wrong = {row[0]: row[2] for row in classes["rows"] if isinstance(row[2], float) and row[2] > 0}
    largest: dict[str, float] = {}
    for row in confusions["rows"]:
        largest[row[0]] = max(largest.get(row[0], 0.0), row[4])
    shares = [min(largest[name] / wrong[name], 1.0) for name in largest if name in wrong]
    focus = (len(counts) - 1) * sum(shares) / len(shares) if shares else 1.0
    estimate = Estimate(noise["value"], noise["low"], noise["high"], noise["n"])
    return Situation(sum(present), len(counts), estimate, max(present) / min(present), focus)


def advise(situation: Situation) -> list[Advice]:
    """The three recipes worth trying first: those whose claims were shown, by the least gain that they showed.

    Methods of different slots come before two of one slot, so that three failures are unlikely to share a cause.
    """
    fitting = [rule for rule in RULES if rule.fits(situation)]
    ranked = sorted(fitting, key=lambda rule: -_least_gain(rule.slug))
    chosen: list[_Rule] = []
    for wanted in (lambda r: _slot(r) not in map(_slot, chosen), lambda r: True):
        for rule in ranked:
            if len(chosen) < ADVISED and rule not in chosen and wanted(rule):
                chosen.append(rule)
    return [
        Advice(
            (render(rule.slug, rule.options(situation)),),
            rule.reason(situation),
            ledger_sentence(rule.slug),
            _least_gain(rule.slug) > 0,
        )
        for rule in sorted(chosen, key=ranked.index)
    ]


def _slot(rule: _Rule) -> str:
    return TABLE[rule.slug].slot


def _least_gain(slug: str) -> float:
    """The end of the interval that is nearer to no gain where the claim was shown; 0 without, -1 where reversed.

    Gains in anything but accuracy cannot be compared with it and count as the smallest.
    """
    record = read_ledger(slug)
    if record is None or record["verdict"] != "shown":
        return -1.0 if record is not None and record["verdict"] == "reversed" else 0.0
    low, high = record["interval"]
    gain = low if record["higher_is_better"] else -high
    return gain if "accuracy" in record["metric"] else 1e-6


def command_of(recipe: Recipe, advice: Sequence[Advice]) -> str:
    """The comparison that decides between cross entropy and what is advised, on the same data."""
    import shlex

    arms = ",".join(["ce", *("+".join(item.use) for item in advice)])
    words = ["weathered", "compare", recipe.data.train]
    plain = DataOptions()
    for name in ("test", "label_column", "test_label_column", "clean_column", "root", "limit", "image_size"):
        if getattr(recipe.data, name) != getattr(plain, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(recipe.data, name))]
    for column in recipe.data.not_features:
        words += ["--not-features", column]
    for spec in recipe.data.make:
        words += ["--make", spec]
    words += ["--model", recipe.model] if recipe.model != Recipe().model else []
    words += ["--epochs", str(recipe.settings.epochs), "--arms", arms, "--seeds", "3"]
    return shlex.join(words)
