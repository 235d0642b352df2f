"""Sets of labels in place of one: how often they miss the label, by one threshold (average-K) and by rank (top-K)."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from weathered.audit.per_sample import check_predictions
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.sets.conformal import Conformal
from weathered.sets.report import error_curve, measure_sets

SIZES = (1, 2, 3, 5, 10)
"""Sizes of sets that are compared, as far as there are more classes."""

MISCOVERAGE = 0.1
"""The share of sets that may miss the label, for the conformal sets that stand beside them."""


def audit_sets(
    held_out_logits: Float[Tensor, "M C"],
    held_out_labels: Int[Tensor, "M"],
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    sizes: Sequence[float] = SIZES,
) -> AuditResult:
    """Errors of top-K and average-K sets at each size, and size and coverage of conformal sets.

    held_out_logits (M, C), held_out_labels (M,): samples that choose the thresholds and measure nothing; their labels
    serve the conformal sets alone. logits (N, C), labels (N,) in [0, C): samples that measure. sizes: below C.
    Returns error rates in [0, 1], lower is better, and gains, top-K minus average-K, higher is better.
    Raises ValueError if shapes, labels or logits do not fit, or no size is below the number of classes.
    """
    for values, truth in ((held_out_logits, held_out_labels), (logits, labels)):
        check_predictions(values, truth, logits.shape[1])
    held_out, probabilities = (values.double().softmax(1) for values in (held_out_logits, logits))
    ks = [k for k in sizes if k < logits.shape[1]]
    if not ks:
        raise ValueError(f"sets need a size below the {logits.shape[1]} classes, got {list(sizes)}")
    curve = error_curve(held_out, probabilities, labels, ks)
    summary, better = {}, {}
    for point in curve:
        summary[f"error of average-{point.k:g}"], better[f"error of average-{point.k:g}"] = point.average_k, False
        summary[f"gain over top-{point.k:g}"], better[f"gain over top-{point.k:g}"] = point.gain, True
    conformal = measure_sets(Conformal(MISCOVERAGE).fit(held_out, held_out_labels).predict(probabilities), labels)
    summary["error of conformal sets"], better["error of conformal sets"] = conformal.error, False
    summary["size of conformal sets"], better["size of conformal sets"] = conformal.size, False
    rows = tuple((p.k, p.top_k.value, *p.average_k[:3], p.gain.value, p.size.value) for p in curve)
    columns = ("K", "error of top-K", "error of average-K", "low", "high", "gain", "size obtained")
    return AuditResult(
        audit="sets",
        summary=summary,
        higher_is_better=better,
        tables=(Table("Sets of K labels", columns, rows),),
        figures=(
            Chart(
                title="Sets that miss the label",
                kind="line",
                x_label="K, labels in a set",
                y_label="error rate",
                series=tuple(
                    Series(name, ks, [e.value for e in found], [e.low for e in found], [e.high for e in found])
                    for name, found in (
                        ("top-K", [p.top_k for p in curve]),
                        ("average-K", [p.average_k for p in curve]),
                    )
                ),
                description=f"Error rate of both rules. At K = {ks[0]:g} top-K misses {curve[0].top_k.value:.1%} "
                f"of the labels, average-K {curve[0].average_k.value:.1%}.",
            ),
        ),
        notes=(
            f"Thresholds come from {len(held_out)} test samples that are not measured; {len(labels)} are. Average-K "
            "has K labels on average, with one threshold for all samples, so that some sets are empty.",
            f"Conformal sets choose their threshold for an error of at most {MISCOVERAGE:.0%}, on samples like these; "
            "their size follows from it. Average-K promises a size and no coverage.",
        ),
    )
