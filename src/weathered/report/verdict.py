"""The verdict in plain words: what was compared, which arm wins, by how much, and whether that is more than seed noise.

Arms of equal means are level. A difference counts as more than seed noise if its 95 % interval excludes 0 and its
p-value stays at or below 0.05 after Holm's correction for the number of arms compared (Holm, Scandinavian Journal of
Statistics 1979), since the best of many arms looks good by chance.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from scipy import stats

from weathered.report.model import ReportArm, ReportInput
from weathered.report.text import Unit, finite, p_value
from weathered.stats import Comparison, paired_comparison

LEVEL = 0.05
FEW_SEEDS = 5
NAMED = 4
"""Arms that a headline names."""


class Verdict(NamedTuple):
    """One sentence to remember, the sentences that support it, and how sure it is."""

    headline: str
    sentences: tuple[str, ...]
    tone: Literal["clear", "unclear", "single"]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number, name -> p in [0, 1], by Holm's step-down rule."""
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected


def corrected_p(report: ReportInput) -> dict[str, float]:
    """Holm's p-value of each arm that is compared with the baseline."""
    return holm({arm.name: arm.comparison.p_value for arm in report.arms if arm.comparison is not None})


def more_than_noise(comparison: Comparison, corrected: float) -> bool:
    """Whether a paired difference can be told from seed noise, after correction."""
    return comparison.difference.n > 1 and comparison.excludes_zero and corrected <= LEVEL


def level(one: ReportArm, other: ReportArm) -> bool:
    """Whether two arms have the same mean, up to rounding."""
    return math.isclose(one.estimate.value, other.estimate.value, rel_tol=1e-12, abs_tol=1e-12)


def verdict(report: ReportInput) -> Verdict:
    """The verdict on a comparison, or the result of a single run."""
    if len(report.arms) == 1:
        return _single(report)
    unit, ranking = Unit.of(report.percent), report.ranking()
    baseline = next(arm for arm in report.arms if arm.name == report.baseline)
    best = ranking[0]
    leader = best if best is not baseline else ranking[1]
    comparison, corrected = _of(leader), corrected_p(report)
    clear = more_than_noise(comparison, corrected[leader.name])
    gap = unit.gap(comparison.difference.value)
    if comparison.difference.n == 1:
        headline = f"One seed cannot tell: {_lead(ranking, baseline, gap)}."
    elif clear and best is baseline:
        who = leader.name if len(ranking) == 2 else f"the best of them, {leader.name},"
        headline = f"No arm beats {baseline.name}: {who} is {gap} behind, more than seed noise."
    elif clear:
        headline = f"{best.name} beats {baseline.name} by {gap}, more than seed noise{_rival(ranking, baseline)}."
    else:
        doubt = "" if level(leader, baseline) else ", which may be seed noise"
        headline = f"No clear winner: {_lead(ranking, baseline, gap)}{doubt}."
    sentences = [
        f"{len(report.arms)} arms were compared on {report.data} by {report.metric}, "
        f"{_seeds(len(baseline.values))} each, against the baseline {baseline.name}.",
        _numbers(leader, baseline, corrected, unit),
        *_runner_up(ranking, baseline, unit),
        *_groups(report, corrected),
        *_power(comparison, corrected[leader.name], unit),
    ]
    return Verdict(headline, tuple(sentences), "clear" if clear else "unclear")


def _of(arm: ReportArm) -> Comparison:
    if arm.comparison is None:
        raise ValueError(f"arm '{arm.name}' has no comparison with the baseline")
    return arm.comparison


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _lead(ranking: Sequence[ReportArm], baseline: ReportArm, gap: str) -> str:
    """How the means of the best arm and the baseline, or of the baseline and its best rival, lie to each other."""
    best = ranking[0]
    other = ranking[1] if best is baseline else baseline
    if level(best, other):
        equal = [arm.name for arm in ranking if level(arm, best)]
        if len(equal) > NAMED:
            return f"{'all ' if len(equal) == len(ranking) else ''}{len(equal)} arms are level, {best.name} among them"
        return f"{', '.join(equal[:-1])} and {equal[-1]} are level"
    return f"{best.name} is {'' if len(best.values) == 1 else 'on average '}{gap} ahead of {other.name}"


def _numbers(leader: ReportArm, baseline: ReportArm, corrected: Mapping[str, float], unit: Unit) -> str:
    comparison = _of(leader)
    difference = comparison.difference
    if level(leader, baseline):
        text = f"{leader.name} and {baseline.name} both reach {unit.value(baseline.estimate.value)}"
    else:
        text = _apart(leader, baseline, unit)
    if difference.n == 1:
        return text + " on 1 seed, so neither an interval nor a p-value can be given."
    if not finite(difference.low):
        return text + f", the same on each of {difference.n} seeds, so neither an interval nor a p-value can be given."
    text += (
        f" (95 % interval of the difference {unit.interval(difference.low, difference.high, signed=True)}, paired over "
        f"{_seeds(difference.n)}, {p_value(comparison.p_value)}"
    )
    count = len(corrected)
    return text + (f"; {p_value(corrected[leader.name])} allowing for {count} comparisons)." if count > 1 else ").")


def _apart(leader: ReportArm, baseline: ReportArm, unit: Unit) -> str:
    difference = _of(leader).difference.value
    return (
        f"{leader.name} reaches {unit.value(leader.estimate.value)}, {baseline.name} "
        f"{unit.value(baseline.estimate.value)}: a difference of {unit.signed(difference)}{unit.difference}"
    )


def _second(ranking: Sequence[ReportArm], baseline: ReportArm) -> tuple[ReportArm, Comparison] | None:
    """The second arm and the best arm's lead over it, where neither is the baseline and the seeds are paired."""
    best, second = ranking[:2]
    if baseline in (best, second) or len(best.values) != len(second.values) or len(best.values) < 2:
        return None
    return second, paired_comparison(best.values, second.values)


def _rival(ranking: Sequence[ReportArm], baseline: ReportArm) -> str:
    found = _second(ranking, baseline)
    return f"; {found[0].name} may be as good" if found and not found[1].excludes_zero else ""


def _runner_up(ranking: Sequence[ReportArm], baseline: ReportArm, unit: Unit) -> list[str]:
    found = _second(ranking, baseline)
    if found is None:
        return []
    second, (difference, p) = found
    if level(ranking[0], second):
        return [f"The second, {second.name}, is level with {ranking[0].name}."]
    lead = f"The lead of {ranking[0].name} over the second, {second.name}, is {unit.gap(difference.value)}"
    if not finite(difference.low):
        return [f"{lead} on each of {difference.n} seeds, so whether it is seed noise cannot be told."]
    told = "may be seed noise" if not found[1].excludes_zero else "is more than seed noise"
    return [
        f"{lead} (95 % interval of the difference "
        f"{unit.interval(difference.low, difference.high, signed=True)}, {_seeds(difference.n)}, {p_value(p)}) and "
        f"{told}."
    ]


def _groups(report: ReportInput, corrected: Mapping[str, float]) -> list[str]:
    single_seed = any(arm.comparison is not None and arm.comparison.difference.n == 1 for arm in report.arms)
    if len(corrected) < 2 or single_seed:
        # one seed tests nothing, so nothing is found equal either
        return []
    sign = 1 if report.higher_is_better else -1
    better, worse, open_ = [], [], []
    for arm in report.ranking():
        if arm.comparison is None:
            continue
        if not more_than_noise(arm.comparison, corrected[arm.name]):
            open_.append(arm.name)
        elif sign * arm.comparison.difference.value > 0:
            better.append(arm.name)
        else:
            worse.append(arm.name)
    parts = [("Better", "than"), ("Worse", "than"), ("Not to be told apart", "from")]
    listed = zip(parts, (better, worse, open_), strict=True)
    return [
        f"{words} {link} {report.baseline} after correction for {len(corrected)} comparisons: {', '.join(names)}."
        for (words, link), names in listed
        if names
    ]


def _power(comparison: Comparison, corrected: float, unit: Unit) -> list[str]:
    """What so few seeds could not have shown: half the interval at the level that the correction left to this arm."""
    difference = comparison.difference
    if difference.n == 1:
        return ["A single seed says nothing about seed noise: run at least 3 seeds, better 5 or more."]
    if difference.n >= FEW_SEEDS:
        return []
    tail = LEVEL / 2 * (comparison.p_value / corrected if corrected > 0 else 1.0)
    wider = stats.t.isf(tail, difference.n - 1) / stats.t.isf(LEVEL / 2, difference.n - 1)
    half = float(wider) * (difference.high - difference.low) / 2
    if not finite(half):
        return [f"{_seeds(difference.n)} are few to call a difference constant: run more."]
    return [
        f"{_seeds(difference.n)} are few: a difference under about {unit.gap(half)} could not have been told from "
        "noise here. More seeds narrow the intervals."
    ]


def _single(report: ReportInput) -> Verdict:
    arm, unit = report.arms[0], Unit.of(report.percent)
    beside, told = _within(report, unit)
    headline = f"{arm.name} reaches {unit.value(arm.estimate.value)} {report.metric}{beside}."
    trained = f"One arm was trained with {_seeds(len(arm.values))} on {report.data}"
    sentences = [f"{trained}. {told}" if told else f"{trained}; there is nothing to compare with."]
    if arm.estimate.n > 1 and not finite(arm.estimate.low):
        sentences.append(f"All {arm.estimate.n} seeds give the same, which says nothing about how much others differ.")
    elif arm.estimate.n > 1:
        sentences.append(
            f"The 95 % interval over {_seeds(arm.estimate.n)} is {unit.interval(arm.estimate.low, arm.estimate.high)}."
        )
    else:
        sentences += _sampling(report, unit)
        sentences.append("One seed says nothing about how much the result changes from run to run.")
    return Verdict(headline, tuple(sentences), "single")


def _within(report: ReportInput, unit: Unit) -> tuple[str, str]:
    """How a few-shot run lies to what it was compared with on the same episodes, for the headline and in a sentence.

    Both empty where the run itself compares nothing.
    """
    if len(report.arms[0].values) > 1:
        return "", ""
    shots = report.metric.partition(" ")[0]
    for audit in report.audits:
        for name, found in audit.result.get("summary", {}).items():
            rival = name.removeprefix(f"{shots} gain over ")
            if audit.result.get("audit") != "few-shot" or rival == name or not finite(found["low"]):
                continue
            side = "ahead of" if found["value"] > 0 else "behind"
            sure = found["low"] > 0 or found["high"] < 0
            beside = f", {unit.gap(found['value'])} {side} {rival}" if sure else f", not to be told from {rival}"
            span = unit.interval(found["low"], found["high"], signed=True)
            return beside, (
                f"On the same episodes its difference to {rival} is {unit.signed(found['value'])}{unit.difference} "
                f"(95 % interval {span})."
            )
    return "", ""


def _sampling(report: ReportInput, unit: Unit) -> list[str]:
    """The interval over test samples, where an audit found this run's value under the first words of the metric."""
    value, metric = report.arms[0].estimate.value, report.metric.removeprefix("test ")
    for audit in report.audits:
        for name, found in audit.result.get("summary", {}).items():
            same = f"{metric} ".startswith(f"{name} ") and finite(found["value"]) and abs(found["value"] - value) < 1e-6
            if same and finite(found["low"]) and finite(found["high"]):
                span = unit.interval(found["low"], found["high"])
                what = "episodes" if audit.result.get("audit") == "few-shot" else "test samples"
                return [f"The 95 % interval over {found['n']} {what} is {span}."]
    return []
