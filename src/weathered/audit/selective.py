"""Selective prediction: how the error falls when a model may leave its least sure answers to someone else.

Answers are kept in the order of confidence, the largest softmax probability. At coverage k / N the risk is the share of
wrong answers among the k surest. The area under the risk-coverage curve is the mean of these risks (Geifman, Uziel and
El-Yaniv, ICLR 2019); its excess is what it exceeds that of the same answers in the best possible order by. Equal
confidences have no order, so each of them counts with the mean error of all of them.
Limits: a perfect model has an area of 0; confidence that says nothing has the error rate at every coverage.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.audit.per_sample import per_sample
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.core.rng import generator
from weathered.stats import Estimate, proportion_interval

COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""Shares of the answers that are kept, for the table."""

COLUMNS = ("coverage", "kept", "least confidence", "risk", "low", "high")
POINTS = 40
DRAWS_AT_ONCE = 2**21


def errors_by_confidence(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Errors (N,) in [0, 1] from the surest answer to the least sure; equal confidences share theirs alike.

    Raises ValueError unless both are (N,) with N >= 1.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"expected confidences and correctness (N,), got {confidence.shape} and {correct.shape}")
    order = np.argsort(-confidence, kind="stable")
    values, errors = confidence[order], 1.0 - correct[order]
    block = np.cumsum(np.concatenate(([False], values[1:] != values[:-1])))
    return (np.bincount(block, weights=errors) / np.bincount(block))[block]


def area_under_risk_coverage(errors: np.ndarray) -> np.ndarray:
    """Mean over k of the mean of the first k errors, in [0, 1], lower is better; errors (..., N) by confidence."""
    return (np.cumsum(errors, -1) / np.arange(1, errors.shape[-1] + 1)).mean(-1)


def best_area(error_rate: np.ndarray | float, size: int) -> np.ndarray:
    """The area of `size` answers with this error rate when all wrong ones come last."""
    wrong = np.asarray(error_rate, float) * size
    k = np.arange(1, size + 1)
    return (np.maximum(k - (size - wrong[..., None]), 0) / k).mean(-1)


def audit_selective(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    rng: torch.Generator | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> AuditResult:
    """Area under the risk-coverage curve, its excess, and the risk at some coverages.

    logits (N, C), labels (N,) in [0, C). rng: draws of the bootstrap, on the CPU; those of seed 0 without.
    Returns risks in [0, 1], lower is better. per_sample: confidence, correct.
    Raises ValueError if shapes, labels or logits do not fit, or resamples < 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    samples = per_sample(logits, labels)
    rng = generator(0, "selective") if rng is None else rng
    errors, size = errors_by_confidence(samples.confidence, samples.correct), len(samples.correct)
    areas, excesses = [], []
    at_once = max(1, DRAWS_AT_ONCE // size)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        # in order, as confidence is
        drawn = np.sort(torch.randint(size, (rows, size), generator=rng).numpy(), axis=1)
        resampled = errors[drawn]
        areas.append(area_under_risk_coverage(resampled))
        excesses.append(np.maximum(areas[-1] - best_area(resampled.mean(1), size), 0))
    tails = (1 - level) / 2, (1 + level) / 2

    def estimate(value: float, draws: list[np.ndarray]) -> Estimate:
        low, high = (float(q) for q in np.quantile(np.concatenate(draws), tails))
        return Estimate(value, min(low, value), max(high, value), size)

    area = float(area_under_risk_coverage(errors))
    wrong = np.cumsum(errors)
    summary = {
        "area under risk-coverage": estimate(area, areas),
        "excess area under risk-coverage": estimate(max(area - float(best_area(errors.mean(), size)), 0.0), excesses),
    }
    rows = []
    for coverage in COVERAGES:
        kept = max(1, round(coverage * size))
        risk = proportion_interval(min(float(wrong[kept - 1]), kept), kept)
        summary[f"risk at {coverage:.0%} coverage"] = risk
        rows.append((f"{coverage:.0%}", kept, float(np.sort(-samples.confidence)[kept - 1] * -1), *risk[:3]))
    return AuditResult(
        audit="selective",
        summary=summary,
        higher_is_better=dict.fromkeys(summary, False),
        tables=(
            Table("Risk by coverage", ("coverage", "kept", "least confidence", "risk", "low", "high"), tuple(rows)),
        ),
        figures=(_curve(wrong, size),),
        per_sample={"confidence": samples.confidence, "correct": samples.correct},
        notes=(
            f"Answers are kept from the surest down. Without leaving any out the error is {errors.mean():.3f}; the "
            "excess area is 0 if every wrong answer is less sure than every right one.",
            "Thresholds are those of these test data; on others the coverage will be another.",
        ),
    )


def _curve(wrong: np.ndarray, size: int) -> Chart:
    kept = np.unique(np.linspace(1, size, min(size, POINTS)).round().astype(int))
    risks = [proportion_interval(min(float(wrong[k - 1]), int(k)), int(k)) for k in kept]
    series = Series(
        "model", (kept / size).tolist(), [e.value for e in risks], [e.low for e in risks], [e.high for e in risks]
    )
    return Chart(
        "Risk and coverage", "line", "coverage, share of answers kept", "risk, share of these that is wrong", (series,),
        f"Error among the surest answers against the share that is kept; {risks[-1].value:.1%} when all are kept.",
    )  # fmt: skip
