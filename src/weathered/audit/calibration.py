"""Calibration: does a confidence of 80 % mean right in 80 % of cases?

Expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017): sum over bins of
(n_b / N) |accuracy_b - mean confidence_b|. Bins are half-open from the left, (low, high], and the first also holds
confidence 0, so that every confidence in [0, 1] falls into exactly one. Limit cases: confidence always equal to
correctness gives 0; always 1 and always wrong gives 1; one bin gives |accuracy - mean confidence|.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.audit.binning import bin_confidence
from weathered.audit.classwise_calibration import classwise_calibration
from weathered.audit.per_sample import per_sample
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.core.rng import generator
from weathered.stats import Estimate, proportion_interval, sample_mean_interval

DRAWS_AT_ONCE = 2**21
"""Bootstrap draws held in memory at a time: 16 MiB."""


def top_label(probabilities: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Confidence (N,) float64 of the most probable class of each row, and whether that class is the label, (N,) bool.

    probabilities (N, C), labels (N,). Ties go to the lowest class. What `expected_calibration_error` takes.
    Raises ValueError if the shapes do not fit.
    """
    matrix, given = np.asarray(probabilities), np.asarray(labels)
    if matrix.ndim != 2 or 0 in matrix.shape or given.shape != matrix.shape[:1]:
        raise ValueError(f"expected probabilities (N, C) and labels (N,), got {matrix.shape} and {given.shape}")
    predicted = matrix.argmax(1)
    return matrix[np.arange(len(matrix)), predicted].astype(np.float64), predicted == given


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15, equal_mass: bool = False
) -> float:
    """Expected calibration error in [0, 1], 0 for a calibrated model; one pass over the samples.

    confidence (N,): probability of the predicted class. correct (N,): bool. Raises ValueError as `bin_confidence`.
    """
    place = bin_confidence(confidence, bins, equal_mass).of_sample
    gaps = np.bincount(place, weights=np.asarray(confidence, float) - correct)
    return float(np.abs(gaps).sum()) / len(confidence)


def calibration_interval(
    confidence: np.ndarray,
    correct: np.ndarray,
    rng: torch.Generator,
    bins: int = 15,
    equal_mass: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Estimate, float]:
    """Expected calibration error with its bootstrap interval, and what perfect calibration would score.

    The distribution of the resampled error is reflected at the estimate (the basic interval: Davison and Hinkley
    1997, section 2.4), because resampling adds to an upward bias that the estimate already has and a percentile
    interval would keep it. The second number is the upper quantile, at the interval's level, of the error of a
    perfectly calibrated model with these confidences (consistency resampling: Bröcker and Smith, Weather and
    Forecasting 2007); an estimate no larger than that has an interval that starts at 0. Bins stay those of the given
    sample. rng: a generator on the CPU. Raises ValueError as `bin_confidence`, or if resamples < 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    edges, place = bin_confidence(confidence, bins, equal_mass)
    confidence = np.asarray(confidence, float)
    gap, n, k = confidence - correct, len(confidence), len(edges) - 1
    at_once = max(1, DRAWS_AT_ONCE // n)
    resampled, calibrated = [], []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        offset = np.repeat(np.arange(rows) * k, n)
        drawn = torch.randint(n, (rows * n,), generator=rng).numpy()
        resampled.append(_errors(place[drawn] + offset, gap[drawn], rows, k) / n)
        right = torch.rand(rows, n, generator=rng, dtype=torch.float64).numpy() < confidence
        calibrated.append(_errors(np.tile(place, rows) + offset, (confidence - right).ravel(), rows, k) / n)
    value = float(_errors(place, gap, 1, k)[0]) / n
    low, high = (float(q) for q in np.quantile(np.concatenate(resampled), [(1 - level) / 2, (1 + level) / 2]))
    perfect = float(np.quantile(np.concatenate(calibrated), (1 + level) / 2))
    lower = 0.0 if value <= perfect else min(value, max(0.0, 2 * value - high))
    return Estimate(value, lower, max(value, min(1.0, 2 * value - low)), n), perfect


def _errors(cell: np.ndarray, gap: np.ndarray, rows: int, k: int) -> np.ndarray:
    sums = np.bincount(cell, weights=gap, minlength=rows * k)
    return np.abs(sums.reshape(rows, k)).sum(1)


def audit_calibration(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    rng: torch.Generator | None = None,
    bins: int = 15,
    equal_mass: bool = False,
    resamples: int = 1000,
) -> AuditResult:
    """Expected and class-wise calibration error, negative log likelihood (nats), Brier score (0 to 2), and a diagram.

    logits (N, C) whose softmax is the model's probability, labels (N,) in [0, C). rng: draws of the bootstrap, on
    the CPU; without one, those of seed 0, so that an audit repeats. bins, equal_mass: see `bin_confidence`.
    per_sample: confidence, loss, brier.
    Raises ValueError if shapes, labels or logits do not fit.
    """
    samples = per_sample(logits, labels)
    rng = generator(0, "calibration") if rng is None else rng
    error, perfect = calibration_interval(samples.confidence, samples.correct, rng, bins, equal_mass, resamples)
    classwise = classwise_calibration(logits, labels, rng, bins, resamples)
    summary = {
        "expected calibration error": error,
        "class-wise calibration error": classwise.mean,
        "negative log likelihood": sample_mean_interval(samples.loss),
        "Brier score": sample_mean_interval(samples.brier),
    }
    table, chart = _reliability(samples.confidence, samples.correct, bins, equal_mass)
    return AuditResult(
        audit="calibration",
        summary=summary,
        higher_is_better=dict.fromkeys(summary, False),
        tables=(table,),
        figures=(chart,),
        per_sample={"confidence": samples.confidence, "loss": samples.loss, "brier": samples.brier},
        notes=(
            _direction(samples.confidence, samples.correct),
            f"The expected calibration error uses {bins} bins of equal {'mass' if equal_mass else 'width'}, depends on "
            f"that choice and is biased upwards for few samples, because chance within a bin counts as error: with "
            f"these {len(labels)} confidences a perfectly calibrated model would score up to {perfect:.3f}.",
            f"The class-wise error asks the same of the probability of each class, over {bins} bins of equal width; it "
            f"is their mean, and the worst class has {classwise.by_class.max():.3f}.",
            "Negative log likelihood and Brier score need no bins; they mix calibration with accuracy.",
        ),
    )


def _direction(confidence: np.ndarray, correct: np.ndarray) -> str:
    gap = sample_mean_interval(confidence - correct)
    if gap.low > 0:
        verdict = "The model is overconfident"
    elif gap.high < 0:
        verdict = "The model is underconfident"
    else:
        verdict = "On average confidence and accuracy cannot be told apart"
    return (
        f"{verdict}: mean confidence {confidence.mean():.3f} against accuracy {correct.mean():.3f}, difference "
        f"{gap.value:+.3f} (95 % interval {gap.low:+.3f} to {gap.high:+.3f}, n = {gap.n})."
    )


class ReliabilityPoints(NamedTuple):
    """edges (K + 1,) of the bins; of each bin that holds samples its number, mean confidence and accuracy."""

    edges: np.ndarray
    filled: np.ndarray
    confidence: list[float]
    accuracy: list[Estimate]


def reliability_points(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15, equal_mass: bool = False
) -> ReliabilityPoints:
    """The points of a reliability diagram, accuracies with Wilson's interval; arguments as for `bin_confidence`."""
    edges, place = bin_confidence(confidence, bins, equal_mass)
    counts = np.bincount(place, minlength=len(edges) - 1)
    sums = np.bincount(place, weights=confidence, minlength=len(counts))
    hits = np.bincount(place, weights=correct, minlength=len(counts))
    filled = counts.nonzero()[0]
    accuracy = [proportion_interval(float(hits[b]), int(counts[b])) for b in filled]
    return ReliabilityPoints(edges, filled, [float(sums[b] / counts[b]) for b in filled], accuracy)


def _reliability(confidence: np.ndarray, correct: np.ndarray, bins: int, equal_mass: bool) -> tuple[Table, Chart]:
    edges, filled, means, accuracy = reliability_points(confidence, correct, bins, equal_mass)
    rows = tuple(
        (f"{edges[b]:.3f} to {edges[b + 1]:.3f}", a.n, m, a.value, a.low, a.high)
        for b, a, m in zip(filled, accuracy, means, strict=True)
    )
    columns = ("confidence", "n", "mean confidence", "accuracy", "low", "high")
    chart = Chart(
        title="Reliability diagram",
        kind="line",
        x_label="mean confidence",
        y_label="accuracy",
        series=(
            Series("model", means, [a.value for a in accuracy], [a.low for a in accuracy], [a.high for a in accuracy]),
        ),
        description="Accuracy against confidence, one point per bin that holds samples, with 95 % intervals. Points "
        "under the diagonal are overconfident, points above it underconfident.",
        diagonal=True,
    )
    return Table("Reliability", columns, rows), chart
