"""Accuracy: over all samples, over classes, of the worst class, of head, middle and tail, and what is confused.

Balanced accuracy is the mean of the class accuracies, so that a rare class weighs as much as a common one. Its
interval combines the classes' Wilson intervals by their squared distances from the estimates (Zou and Donner,
Statistics in Medicine 2008); for one class it is Wilson's interval.

Head, middle and tail are thirds of the classes in descending order of training samples, ties in the order of the
classes, the larger thirds first; the accuracy of a third is the mean of its class accuracies. Liu et al. (CVPR 2019)
split at fixed counts instead (more than 100, fewer than 20), which leaves groups empty on small data.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from weathered.audit.per_sample import check_predictions, per_sample
from weathered.audit.result import AuditResult, Chart, Series, Table, quoted
from weathered.stats import Estimate, proportion_interval

TAIL_RATIO = 2
"""Largest over smallest class from which on head, middle and tail are told apart."""

THIRDS = ("head", "middle", "tail")
MOST_CONFUSIONS = 20
MOST_BARS = 40


def class_accuracies(correct: np.ndarray, labels: np.ndarray, num_classes: int) -> list[Estimate | None]:
    """Accuracy of each class with Wilson's interval; None for a class without samples.

    correct (N,): bool. labels (N,): in [0, num_classes).
    """
    counts = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=correct, minlength=num_classes)
    return [proportion_interval(float(h), int(n)) if n else None for h, n in zip(hits, counts, strict=True)]


def mean_of_proportions(estimates: Sequence[Estimate]) -> Estimate:
    """Unweighted mean of independent proportions with the interval of Zou and Donner (2008); n is their sum."""
    if not estimates:
        raise ValueError("a mean needs at least one class with test samples")
    value, low, high, n = np.array(estimates, dtype=float).T
    mean, k = float(value.mean()), len(estimates)
    below = float(np.sqrt(np.square(value - low).sum())) / k
    above = float(np.sqrt(np.square(high - value).sum())) / k
    return Estimate(mean, max(0.0, mean - below), min(1.0, mean + above), int(n.sum()))


def thirds_by_count(counts: np.ndarray) -> list[np.ndarray]:
    """Classes of head, middle and tail for training counts (C,), each an array of class numbers. Needs C >= 3."""
    if len(counts) < 3:
        raise ValueError(f"thirds need at least 3 classes, got {len(counts)}")
    return np.array_split(np.argsort(-np.asarray(counts), kind="stable"), 3)


def frequent_confusions(
    predicted: np.ndarray, labels: np.ndarray, num_classes: int, most: int
) -> list[tuple[int, int, int]]:
    """The most frequent mistakes (label, predicted, count), most frequent first; memory grows with N, not with C^2."""
    wrong = predicted != labels
    pairs, counts = np.unique(labels[wrong].astype(np.int64) * num_classes + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(pairs[i]) // num_classes, int(pairs[i]) % num_classes, int(counts[i])) for i in order]


def audit_accuracy(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, "N"],
    class_names: Sequence[str],
    train_counts: Int[Tensor, "C"] | None = None,
) -> AuditResult:
    """How often the largest logit names the right class, overall and class by class.

    logits (N, C), labels (N,) in [0, C), class_names: C names. train_counts (C,): training samples of each class;
    with them classes are grouped into head, middle and tail if the largest is at least twice the smallest.
    Returns accuracies in [0, 1]; a class without test samples is listed as such and takes part in no mean.
    per_sample: predicted, confidence, correct, loss (nats).
    Raises ValueError if shapes, labels or logits do not fit.
    """
    check_predictions(logits, labels, len(class_names))
    if train_counts is not None and tuple(train_counts.shape) != (len(class_names),):
        raise ValueError(f"train_counts must be ({len(class_names)},), got {tuple(train_counts.shape)}")
    samples, truth = per_sample(logits, labels), labels.cpu().numpy()
    names, counts = list(class_names), None if train_counts is None else train_counts.cpu().numpy()
    by_class = class_accuracies(samples.correct, truth, len(names))
    present = {c: estimate for c, estimate in enumerate(by_class) if estimate is not None}
    worst = min(present, key=lambda c: (present[c].value, c))

    summary = {
        "accuracy": proportion_interval(float(samples.correct.sum()), len(truth)),
        "balanced accuracy": mean_of_proportions(list(present.values())),
        "worst class accuracy": present[worst],
    }
    notes = [
        f"The worst class is '{names[worst]}'. It was picked for being lowest, so some of its distance from the rest "
        "is chance; its interval does not correct for that."
    ]
    if missing := [names[c] for c in range(len(names)) if c not in present]:
        notes.append(_missing_note(missing, len(names)))
    groups, group_notes = _thirds(present, names, counts)
    summary |= groups
    return AuditResult(
        audit="accuracy",
        summary=summary,
        higher_is_better=dict.fromkeys(summary, True),
        tables=(
            _class_table(by_class, names, counts),
            _confusion_table(samples.predicted, truth, names),
        ),
        figures=(_class_chart(present, names),),
        per_sample={
            "predicted": samples.predicted,
            "confidence": samples.confidence,
            "correct": samples.correct,
            "loss": samples.loss,
        },
        notes=(*notes, *group_notes),
    )


def _missing_note(missing: list[str], num_classes: int) -> str:
    return f"{len(missing)} of {num_classes} classes have no test samples and take part in no mean: {quoted(missing)}."


def _thirds(
    present: dict[int, Estimate], names: list[str], counts: np.ndarray | None
) -> tuple[dict[str, Estimate], list[str]]:
    """Head, middle and tail accuracy, and sentences about the split or why there is none."""
    if counts is None:
        return {}, ["Head, middle and tail are left out: the numbers of training samples per class are not known."]
    if counts.max() < TAIL_RATIO * counts.min():
        least, most = int(counts.min()), int(counts.max())
        spread = f"{least} to {most}" if least < most else str(most)
        return {}, [f"Head, middle and tail are left out: classes are of similar size, {spread} training samples each."]
    if len(counts) < 3:
        return {}, ["Head, middle and tail are left out: there are fewer than 3 classes."]
    thirds = thirds_by_count(counts)
    found, notes = {}, []
    for third, classes in zip(THIRDS, thirds, strict=True):
        tested = [present[c] for c in classes.tolist() if c in present]
        if tested:
            found[f"{third} accuracy"] = mean_of_proportions(tested)
        else:
            notes.append(f"The {third} accuracy is left out: none of its classes has test samples.")
    spans = "; ".join(
        f"{third}: {len(classes)} classes, {int(counts[classes].min())} to {int(counts[classes].max())} each"
        for third, classes in zip(THIRDS, thirds, strict=True)
    )
    notes.append(f"Head, middle and tail are thirds of the classes by number of training samples ({spans}).")
    for left, right in (thirds[:2], thirds[1:]):
        if counts[left[-1]] == counts[right[0]]:
            notes.append(
                f"'{names[left[-1]]}' and '{names[right[0]]}' have equally many training samples but fall into "
                "different thirds, by the order of the classes."
            )
    return found, notes


def _class_table(by_class: list[Estimate | None], names: list[str], counts: np.ndarray | None) -> Table:
    rows = []
    for c, estimate in enumerate(by_class):
        train = () if counts is None else (int(counts[c]),)
        measured = ("no test samples", "", "") if estimate is None else estimate[:3]
        rows.append((names[c], 0 if estimate is None else estimate.n, *train, *measured))
    train_column = () if counts is None else ("train n",)
    return Table("Classes", ("class", "n", *train_column, "accuracy", "low", "high"), tuple(rows))


def _confusion_table(predicted: np.ndarray, labels: np.ndarray, names: list[str]) -> Table:
    sizes = np.bincount(labels, minlength=len(names))
    rows = []
    for label, guess, count in frequent_confusions(predicted, labels, len(names), MOST_CONFUSIONS):
        share = proportion_interval(count, int(sizes[label]))
        rows.append((names[label], names[guess], count, share.n, *share[:3]))
    columns = ("label", "predicted as", "count", "n of label", "share of label", "low", "high")
    return Table("Most frequent confusions", columns, tuple(rows))


def _class_chart(present: dict[int, Estimate], names: list[str]) -> Chart:
    order = sorted(present, key=lambda c: (present[c].value, c))
    shown = order[:MOST_BARS]
    values = [present[c] for c in shown]
    which = "all tested classes" if len(shown) == len(order) else f"the {len(shown)} worst of {len(order)} classes"
    first, last = shown[0], shown[-1]
    return Chart(
        title="Accuracy per class",
        kind="bar",
        x_label="class, worst first",
        y_label="accuracy",
        series=(
            Series(
                "accuracy",
                [names[c] for c in shown],
                [v.value for v in values],
                [v.low for v in values],
                [v.high for v in values],
            ),
        ),
        description=f"Accuracy with 95 % intervals of {which}, from {present[first].value:.3f} for '{names[first]}' "
        f"to {present[last].value:.3f} for '{names[last]}'.",
    )
