"""Groups: whom a model serves worse, by accuracy, by what each class is recognised, and by its confidence.

Equal opportunity asks that members of a class are recognised alike in all groups (Hardt et al., NeurIPS 2016, there for
the favourable one of two classes). Its gap here is the largest difference of recall between two groups over all
classes. Worst-group accuracy as in Sagawa et al., ICLR 2020. The gap between two groups has the interval of a
difference of independent proportions (Newcombe, Statistics in Medicine 1998, method 10).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from weathered.audit.calibration import calibration_interval, reliability_points
from weathered.audit.per_sample import PerSample, check_predictions, per_sample
from weathered.audit.result import AuditResult, Chart, Series, Table, quoted
from weathered.core.rng import generator
from weathered.stats import Estimate, difference_of_proportions, proportion_interval

BINS = 10
MOST_SERIES = 8


def check_groups(groups: Tensor, size: int, num_groups: int) -> None:
    """Raise ValueError unless there is one whole number in [0, num_groups) for each sample, and two groups have any."""
    if tuple(groups.shape) != (size,) or groups.is_floating_point():
        raise ValueError(f"groups must be ({size},) whole numbers, got {tuple(groups.shape)} of {groups.dtype}")
    if size and not (int(groups.min()) >= 0 and int(groups.max()) < num_groups):
        raise ValueError(
            f"groups must be in [0, {num_groups - 1}] for {num_groups} names, got {int(groups.min())} to "
            f"{int(groups.max())}"
        )
    if len(groups.unique()) < 2:
        raise ValueError("groups are compared where at least two of them have test samples")


def recall_of_groups(
    correct: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int, num_groups: int
) -> list[list[Estimate | None]]:
    """Share of each class that is recognised in each group, [class][group]; None where there is no such sample."""
    cell = labels * num_groups + groups
    counts = np.bincount(cell, minlength=num_classes * num_groups)
    hits = np.bincount(cell, weights=correct, minlength=num_classes * num_groups)
    found = [proportion_interval(float(h), int(n)) if n else None for h, n in zip(hits, counts, strict=True)]
    return [found[c * num_groups : (c + 1) * num_groups] for c in range(num_classes)]


def widest(estimates: Sequence[Estimate | None]) -> tuple[int, int]:
    """(the best, the worst) of those that are there, the first of equals."""
    there = [i for i, estimate in enumerate(estimates) if estimate is not None]
    value = {i: e.value for i, e in enumerate(estimates) if e is not None}
    return max(there, key=lambda i: (value[i], -i)), min(there, key=lambda i: (value[i], i))


def audit_groups(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    groups: Int[Tensor, "N"],
    group_names: Sequence[str],
    class_names: Sequence[str],
    train_counts: Int[Tensor, "G"] | None = None,
    rng_seed: int = 0,
) -> AuditResult:
    """Accuracy, recall and calibration of each group, and the gaps between groups.

    logits (N, C), labels (N,) in [0, C), groups (N,) in [0, G) with G group_names. train_counts (G,): training samples
    of each group, for the table. rng_seed: of the bootstrap of calibration errors.
    A group without test samples is named and takes part in nothing. per_sample: predicted, correct.
    Raises ValueError if shapes, labels, groups or logits do not fit, or fewer than two groups have test samples.
    """
    check_predictions(logits, labels, len(class_names))
    check_groups(groups, len(labels), len(group_names))
    samples, truth, member = per_sample(logits, labels), labels.cpu().numpy(), groups.cpu().numpy()
    size = len(group_names)
    counts = np.bincount(member, minlength=size)
    hits = np.bincount(member, weights=samples.correct, minlength=size)
    accuracy = [proportion_interval(float(h), int(n)) if n else None for h, n in zip(hits, counts, strict=True)]
    best, worst = widest(accuracy)
    recall = recall_of_groups(samples.correct, truth, member, len(class_names), size)
    summary = {
        "worst group accuracy": _there(accuracy[worst]),
        "group accuracy gap": difference_of_proportions(_there(accuracy[best]), _there(accuracy[worst])),
    }
    notes = [f"The worst group is '{group_names[worst]}', the best '{group_names[best]}'. "]
    shared = [c for c, row in enumerate(recall) if sum(e is not None for e in row) > 1]
    if shared:
        pairs = {c: widest(recall[c]) for c in shared}
        gaps = {c: difference_of_proportions(_there(recall[c][a]), _there(recall[c][b])) for c, (a, b) in pairs.items()}
        c = max(shared, key=lambda c: (gaps[c].value, -c))
        summary["equal opportunity gap"] = gaps[c]
        notes[0] += (
            f"The widest gap of recall is that of class '{class_names[c]}', between '{group_names[pairs[c][0]]}' and "
            f"'{group_names[pairs[c][1]]}'. "
        )
    notes[0] += "All were picked for being extreme, so that some of the gaps is chance; their intervals ignore that."
    if missing := [group_names[g] for g in range(size) if not counts[g]]:
        notes.append(f"{len(missing)} of {size} groups have no test samples and count nowhere: {quoted(missing)}.")
    if unseen := [] if train_counts is None else [group_names[g] for g in range(size) if not int(train_counts[g])]:
        notes.append(f"{len(unseen)} of {size} groups have no training samples: {quoted(unseen)}.")
    return AuditResult(
        audit="groups",
        summary=summary,
        higher_is_better={name: "accuracy" in name and "gap" not in name for name in summary},
        tables=(
            _group_table(samples, member, accuracy, group_names, train_counts, rng_seed),
            _recall_table(recall, group_names, class_names),
        ),
        figures=(_reliability(samples, member, counts, group_names),),
        per_sample={"predicted": samples.predicted, "correct": samples.correct},
        notes=tuple(notes),
    )


def _there(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def _group_table(
    samples: PerSample,
    member: np.ndarray,
    accuracy: list[Estimate | None],
    names: Sequence[str],
    train_counts: Tensor | None,
    seed: int,
) -> Table:
    rows: list[tuple[str | float | int, ...]] = []
    for g, found in enumerate(accuracy):
        trained = () if train_counts is None else (int(train_counts[g]),)
        if found is None:
            rows.append((names[g], *trained, 0, *("-",) * 7))
            continue
        chosen = member == g
        confidence, correct = samples.confidence[chosen], samples.correct[chosen]
        error, _ = calibration_interval(confidence, correct, generator(seed, "groups", g), BINS)
        rows.append(
            (names[g], *trained, found.n, found.value, found.low, found.high, float(confidence.mean()), *error[:3])
        )
    trained_column = () if train_counts is None else ("training samples",)
    columns = ("test samples", "accuracy", "low", "high", "mean confidence")
    error_columns = ("calibration error", "error, low", "error, high")
    return Table("Groups", ("group", *trained_column, *columns, *error_columns), tuple(rows))


def _recall_table(recall: list[list[Estimate | None]], group_names: Sequence[str], class_names: Sequence[str]) -> Table:
    rows = tuple((class_names[c], *("-" if e is None else e.value for e in row)) for c, row in enumerate(recall))
    return Table("Recall of classes by group", ("class", *group_names), rows)


def _reliability(samples: PerSample, member: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> Chart:
    """One line for each of the largest groups."""
    series = []
    for g in np.argsort(-counts, kind="stable")[:MOST_SERIES]:
        if not counts[g]:
            continue
        chosen = member == g
        _, _, means, found = reliability_points(samples.confidence[chosen], samples.correct[chosen], BINS)
        series.append(
            Series(str(names[g]), means, [e.value for e in found], [e.low for e in found], [e.high for e in found])
        )
    return Chart(
        "Reliability by group", "line", "mean confidence", "accuracy", tuple(series),
        "Accuracy against confidence for each group, one point per bin that holds samples, with 95 % intervals. Points "
        "under the diagonal are overconfident.",
        diagonal=True,
    )  # fmt: skip
