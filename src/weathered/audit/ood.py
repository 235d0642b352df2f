"""Out-of-distribution audit: how well scores tell strange inputs from test data, in both directions.

Higher scores mean more out-of-distribution. AUROC is the chance that an outlier scores higher than a test sample,
ties counting half. Two error rates with different positive classes are both called FPR95 in the literature; here
they are named: outliers accepted when 95 % of the test data are accepted (ZODE, most papers), and test data rejected
when 95 % of the outliers are rejected (OpenOOD).

Single sets are measured by `ood_metrics`. Means over sets, which share the test data, have intervals of their own:
AUROC by DeLong's variance (Biometrics 1988) in Wilson's interval at the effective number of samples, so that a perfect
AUROC does not get an interval of no width; error rates by combining Wilson's interval with that of the threshold, an
order statistic (MOVER, Zou and Donner, Statistics in Medicine 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import stats

from weathered.audit.ood_metrics import auroc, fpr_at_id_acceptance, fpr_at_ood_recall
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.stats import Estimate, proportion_interval

ACCEPTED = 0.95
AUROC, FALSE_ACCEPTED, FALSE_REJECTED = (
    "AUROC",
    "OOD accepted at 95 % ID acceptance",
    "ID rejected at 95 % OOD rejection",
)

Scores = Mapping[str, np.ndarray]
"""Name of a score -> its values (N,), higher = more out-of-distribution."""


def mean_auroc(scores_id: np.ndarray, scores_ood: Sequence[np.ndarray]) -> Estimate:
    """Mean AUROC over sets of outliers that face the same test data.

    scores_id (N,), scores_ood: (M_k,) each. Returns the mean in [0, 1], 0.5 for scores that tell nothing; n counts
    all samples.
    """
    n, k = len(scores_id), len(scores_ood)
    ordered = np.sort(scores_id)
    of_id, of_ood = np.zeros(n), []
    for outliers in scores_ood:
        below = np.searchsorted(ordered, outliers, side="left") + np.searchsorted(ordered, outliers, side="right")
        of_ood.append(below / (2 * n))
        ranked = np.sort(outliers)
        above = np.searchsorted(ranked, scores_id, side="left") + np.searchsorted(ranked, scores_id, side="right")
        of_id += (1 - above / (2 * len(outliers))) / k
    value = float(np.mean([values.mean() for values in of_ood]))
    variance = _variance(of_id) + sum(_variance(values) for values in of_ood) / k**2
    total = n + sum(len(outliers) for outliers in scores_ood)
    smallest = min(n, sum(len(outliers) for outliers in scores_ood))
    effective = value * (1 - value) / variance if variance > 0 else smallest
    size = max(1, round(min(effective, total)))
    _, low, high, _ = proportion_interval(value * size, size)
    return Estimate(value, low, high, total)


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def mean_false_acceptance(
    scores_id: np.ndarray, scores_ood: Sequence[np.ndarray], accepted: float = ACCEPTED
) -> Estimate:
    """Mean share of outliers accepted at the lowest threshold that accepts the share `accepted` of the test data.

    A sample is accepted if its score is not above the threshold. Swapping the two kinds and negating both scores
    gives the other direction. Returns a share in [0, 1]; n counts the outliers.
    """
    ordered, n, k = np.sort(scores_id), len(scores_id), len(scores_ood)
    rank = _rank(accepted, n)
    around = stats.beta.ppf([0.025, 0.975], rank, n + 1 - rank)
    thresholds = [ordered[rank - 1], *(ordered[_rank(share, n) - 1] for share in around)]
    shares = np.array([[(outliers <= t).mean() for t in thresholds] for outliers in scores_ood])
    value, at_low, at_high = (float(column) for column in shares.mean(0))
    own = [proportion_interval(s * len(o), len(o)) for s, o in zip(shares[:, 0], scores_ood, strict=True)]
    below = np.sqrt(sum((e.value - e.low) ** 2 for e in own) / k**2 + (value - at_low) ** 2)
    above = np.sqrt(sum((e.high - e.value) ** 2 for e in own) / k**2 + (at_high - value) ** 2)
    size = sum(len(outliers) for outliers in scores_ood)
    return Estimate(value, max(0.0, value - float(below)), min(1.0, value + float(above)), size)


def _rank(share: float, n: int) -> int:
    """How many of n samples make at least this share; the slack keeps 0.95 * 20 at 19."""
    return min(n, max(1, int(np.ceil(share * n - 1e-9))))


def check_scores(name: str, scores: np.ndarray) -> np.ndarray:
    """The scores as float64 (N,); raises ValueError naming them if they are not one-dimensional, empty or hold NaN."""
    array = np.asarray(scores, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name}: expected scores (N,) with N >= 1, got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError(f"{name}: the score at position {int(np.isnan(array).argmax())} is NaN")
    return array


def audit_ood(scores_id: Scores, scores_ood: Mapping[str, Scores], notes: Sequence[str] = ()) -> AuditResult:
    """How well each score tells each set of outliers from the test data.

    scores_id: name -> (N,) on the test data, higher = more out-of-distribution. scores_ood: set -> name -> (M,), the
    same names. notes: sentences to add, such as where the outliers come from.
    Returns means over the sets in `summary` and one row per score and set. per_sample: the scores of the test data.
    Raises ValueError if names differ, a score is missing, empty or NaN.
    """
    if not scores_id or not scores_ood:
        raise ValueError("expected at least one score and one set of outliers")
    known = {name: check_scores(f"test data, {name}", values) for name, values in scores_id.items()}
    sets: dict[str, dict[str, np.ndarray]] = {}
    for set_name, scores in scores_ood.items():
        if set(scores) != set(known):
            raise ValueError(f"{set_name} has the scores {sorted(scores)}, the test data have {sorted(known)}")
        sets[set_name] = {name: check_scores(f"{set_name}, {name}", scores[name]) for name in known}

    areas, accepted, rows = {}, {}, []
    for set_name, scores in sets.items():
        for name, values in known.items():
            pair = torch.from_numpy(values), torch.from_numpy(scores[name])
            areas[name], accepted[name] = auroc(*pair), fpr_at_id_acceptance(*pair, ACCEPTED)
            rejected = fpr_at_ood_recall(*pair, ACCEPTED)
            sizes = (len(values), len(scores[name]))
            rows.append((set_name, name, *sizes, *areas[name][:3], *accepted[name][:3], *rejected[:3]))
    if len(sets) > 1:
        for name, values in known.items():
            everywhere = [scores[name] for scores in sets.values()]
            areas[name] = mean_auroc(values, everywhere)
            accepted[name] = mean_false_acceptance(values, everywhere)
    summary = {f"{AUROC}, {name}": estimate for name, estimate in areas.items()}
    summary |= {f"{FALSE_ACCEPTED}, {name}": estimate for name, estimate in accepted.items()}
    bounds = ("low", "high")
    columns = ("outliers", "score", "n ID", "n OOD", AUROC, *bounds, FALSE_ACCEPTED, *bounds, FALSE_REJECTED, *bounds)
    return AuditResult(
        audit="ood",
        summary=summary,
        higher_is_better={name: name.startswith(AUROC) for name in summary},
        tables=(Table("Detection by score and set of outliers", columns, tuple(rows)),),
        figures=(_chart(rows, tuple(sets), tuple(known)),),
        per_sample={f"ood_{name}": values for name, values in known.items()},
        notes=(
            f"Summary figures are means over the sets of outliers ({len(sets)}) against the same {rows[0][2]} test "
            "samples; n counts all samples of AUROC and the outliers of error rates. They say nothing about others.",
            "Choosing the best score by these figures and quoting them for it overstates it.",
            "An AUROC under 0.5 means that outliers look more ordinary than the test data.",
            *notes,
        ),
    )


def _chart(rows: list[tuple], sets: tuple[str, ...], names: tuple[str, ...]) -> Chart:
    area = {(row[0], row[1]): row[4:7] for row in rows}
    best = max(area, key=lambda key: area[key][0])
    worst = min(area, key=lambda key: area[key][0])
    columns = [[[area[s, name][i] for name in names] for i in range(3)] for s in sets]
    return Chart(
        title="AUROC by score",
        kind="bar",
        x_label="score",
        y_label="AUROC",
        series=tuple(Series(s, list(names), *values) for s, values in zip(sets, columns, strict=True)),
        description=f"AUROC of each score on each set of outliers with 95 % intervals, from {area[worst][0]:.3f} "
        f"({worst[1]} on {worst[0]}) to {area[best][0]:.3f} ({best[1]} on {best[0]}); 0.5 is chance.",
    )
