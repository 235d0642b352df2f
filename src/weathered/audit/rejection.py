"""Rejection: what a class of outliers costs on data that hold none, and what is right among the inputs it accepts.

A network with an output for outliers beside those of its K classes can answer in two ways. Among the classes: the
largest of K logits. With rejection: an input is left out where the probability p of the class of outliers is at least
a threshold, 0.5 unless said otherwise. Two accuracies follow, and they are not the same: over the classes alone, and
with each rejected input counted as wrong. An accuracy over K + 1 outputs, which some code reports, rejects where p is
the largest of K + 1 probabilities, so at p = 0.5 or below.
Limits: where nothing is rejected both accuracies are equal; at a threshold of 1 and above nothing is.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.audit.per_sample import per_sample
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.core.errors import Incompatible
from weathered.data.dataset import Dataset
from weathered.scores.extract import has_outlier_class, stream
from weathered.scores.outlier_class import outlier_log_odds
from weathered.stats import proportion_interval

THRESHOLDS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Probabilities of the class of outliers from which an input is rejected, for table and chart."""

ACCURACY, WITH_REJECTION, OVER_ALL, ACCEPTED, REJECTED = (
    "accuracy over the classes",
    "accuracy, rejected counts as wrong",
    "accuracy over the classes and outliers",
    "accuracy of accepted",
    "test samples rejected",
)


def audit_rejection(
    logits: Float[Tensor, "N K"], outlier_logits: Float[Tensor, "N"], labels: Int[Tensor, "N"], threshold: float = 0.5
) -> AuditResult:
    """Accuracy over the classes and with rejection, and what is rejected, on test data of the classes.

    logits (N, K) of the classes, outlier_logits (N,), labels (N,) in [0, K). threshold in (0, 1]: an input is accepted
    if and only if its probability of being an outlier is below. Returns shares in [0, 1]; the accuracy of accepted
    inputs is left out where there are none. per_sample: outlier_score, the log-odds in nats, and accepted.
    Raises ValueError if shapes, labels, logits or the threshold do not fit.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    samples, score = per_sample(logits, labels), outlier_log_odds(logits, outlier_logits)
    odds, correct = score.cpu().numpy(), samples.correct
    size, accepted = len(correct), _below(odds, threshold)
    best = (outlier_logits.double() > logits.double().amax(1)).cpu().numpy()
    summary = {
        ACCURACY: proportion_interval(float(correct.sum()), size),
        WITH_REJECTION: proportion_interval(float((correct & accepted).sum()), size),
        OVER_ALL: proportion_interval(float((correct & ~best).sum()), size),
        REJECTED: proportion_interval(float((~accepted).sum()), size),
    }
    if accepted.any():
        summary[ACCEPTED] = proportion_interval(float(correct[accepted].sum()), int(accepted.sum()))
    rows = [_row(t, _below(odds, t), correct) for t in THRESHOLDS]
    columns = ("threshold", "accepted", "right and accepted", "low", "high", "right of accepted", "low", "high")
    return AuditResult(
        audit="rejection",
        summary=summary,
        higher_is_better={name: name != REJECTED for name in summary},
        tables=(Table("Acceptance by threshold", columns, tuple(rows)),),
        figures=(_chart(odds, correct),),
        per_sample={"outlier_score": odds, "accepted": accepted},
        notes=(
            f"All test samples are of the classes, so to reject one, as {int((~accepted).sum())} are at {threshold:g}, "
            "is a mistake. How well outliers are told apart is the question of the audit ood.",
            "A network that learned corrupted images as outliers rejects corrupted images of its classes by design.",
        ),
    )


def audit_model_rejection(model: nn.Module, test: Dataset, batch_size: int = 256) -> AuditResult:
    """`audit_rejection` of a network with a class of outliers on test data, in blocks.

    Raises Incompatible for a network without one.
    """
    if not has_outlier_class(model):
        raise Incompatible(
            "this network has no class of outliers, so it rejects nothing; train with --use cnc-ood, or ask for the "
            "audits ood and selective instead."
        )
    logits, outlier_logits = [], []
    for block in stream(model, test, batch_size):
        logits.append(block.logits)
        outlier_logits.append(block.outlier_logits)
    return audit_rejection(torch.cat(logits), torch.cat(outlier_logits), test.labels)


def _below(odds: np.ndarray, threshold: float) -> np.ndarray:
    """Where the probability of these log-odds is below; log-odds still tell apart what rounds to a probability of 1."""
    return odds < (math.log(threshold / (1 - threshold)) if threshold < 1 else math.inf)


def _row(threshold: float, accepted: np.ndarray, correct: np.ndarray) -> tuple[str | float | int, ...]:
    kept, right = int(accepted.sum()), float((correct & accepted).sum())
    own = proportion_interval(right, kept)[:3] if kept else ("none", "", "")
    return (threshold, kept, *proportion_interval(right, len(correct))[:3], *own)


def _chart(odds: np.ndarray, correct: np.ndarray) -> Chart:
    lines = []
    for name, counts in (("accepted", [_below(odds, t) for t in THRESHOLDS]),
                         ("right and accepted", [correct & _below(odds, t) for t in THRESHOLDS])):  # fmt: skip
        shares = [proportion_interval(float(count.sum()), len(correct)) for count in counts]
        lines.append(
            Series(name, THRESHOLDS, [s.value for s in shares], [s.low for s in shares], [s.high for s in shares])
        )
    first, last = lines[0].y[0], lines[0].y[-1]
    return Chart(
        "Acceptance", "line", "threshold on the probability of being an outlier", "share of the test samples",
        tuple(lines),
        f"Share of test samples accepted, from {first:.1%} at threshold {THRESHOLDS[0]} to {last:.1%} at "
        f"{THRESHOLDS[-1]}, and share accepted and classified right, with 95 % intervals.",
    )  # fmt: skip
