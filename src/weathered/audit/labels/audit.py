"""The label audit: how many labels are probably wrong, which ones, and what they were probably meant to be."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weathered.audit.labels.against_clean import (
    area_under_roc,
    average_precision,
    precision_and_recall,
    precision_recall_chart,
)
from weathered.audit.labels.blocks import Matrix, check_labels, open_matrix
from weathered.audit.labels.confident import ConfidentLearning, confident_learning
from weathered.audit.labels.issues import Issues, Method, check_method, issues_of
from weathered.audit.labels.noise import NoiseEstimate, estimate_noise
from weathered.audit.labels.quality import DEFAULT
from weathered.audit.labels.scores import Score, check_score
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.core.watch import Progress
from weathered.stats import Estimate, proportion_interval

MOST_PAIRS = 20
SCORE_BINS = 20


class Ranking(NamedTuple):
    """Evidence of another kind than probabilities: what it is called, and its values (N,), lower = more suspicious."""

    name: str
    values: np.ndarray


def audit_labels(
    probabilities: Matrix,
    labels: np.ndarray | Tensor,
    class_names: Sequence[str],
    *,
    clean: np.ndarray | Tensor | None = None,
    score: Score = DEFAULT,
    method: Method = "prune_by_noise_rate",
    ranking: Ranking | None = None,
    rng: torch.Generator | None = None,
    resamples: int = 200,
    block_rows: int | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """Find the labels that are probably wrong, by confident learning.

    probabilities (N, C): out-of-sample, in memory or a .npy file. labels (N,): in [0, C). class_names: C names.
    clean (N,): the right labels where they are known, -1 where no class is right; only to measure the audit. score
    ranks labels, method decides which are suspected: see `scores` and `issues`. ranking: values (N,) in [0, 1] that
    rank labels in place of a score of the probabilities. rng: draws of the bootstrap, on the CPU; without one, those of
    seed 0, so that an audit repeats. Memory besides the probabilities grows with N and C^2.
    per_sample: score (lower = more suspicious), suggested (class number), rank (1 = most suspicious), suspected.
    Raises DataError if shapes, labels or probabilities do not fit, and SpecError for unknown names.
    """
    check_score(score)
    check_method(method)
    matrix, names = open_matrix(probabilities, "Probabilities"), list(class_names)
    if matrix.shape[1] != len(names):
        raise DataError(f"Probabilities have {matrix.shape[1]} columns but there are {len(names)} classes.")
    right = None if clean is None else _right_labels(clean, *matrix.shape)
    learnt = confident_learning(
        matrix, labels, entropy=score == "confidence_weighted_entropy", block_rows=block_rows, progress=progress
    )
    ranked_by = score if ranking is None else ranking.name
    if ranking is None:
        issues = issues_of(learnt, matrix, method=method, score=score, block_rows=block_rows, progress=progress)
    else:
        cheapest = "self_confidence"
        issues = issues_of(learnt, matrix, method=method, score=cheapest, block_rows=block_rows, progress=progress)
        issues = issues.ranked_by(ranking.values)
    rng = generator(0, "label noise") if rng is None else rng
    noise = estimate_noise(learnt, matrix, rng, resamples=resamples, block_rows=block_rows, progress=progress)
    n = len(learnt.labels)
    rank = np.empty(n, np.int64)
    rank[np.argsort(issues.score, kind="stable")] = np.arange(1, n + 1)
    summary = {
        "estimated noise rate": noise.rate,
        "suspected labels": proportion_interval(int(issues.mask.sum()), n),
    }
    better = dict.fromkeys(summary, False)
    notes, figures = _notes(learnt, issues, names, method, ranked_by), []
    wrong = None if right is None else right != learnt.labels
    if wrong is not None:
        measured, more = _measured(issues, wrong, ranked_by)
        summary |= measured
        better |= {name: name != "true noise rate" for name in measured}
        notes += more
        if wrong.any() and not wrong.all():
            figures.append(precision_recall_chart(issues.score, wrong))
    return AuditResult(
        audit="labels",
        summary=summary,
        higher_is_better=better,
        tables=(_class_table(learnt, issues, noise, names, wrong), _pair_table(learnt, issues, noise, names)),
        figures=(*figures, _score_chart(issues.score, ranked_by, wrong)),
        per_sample={"score": issues.score, "suggested": issues.suggested, "rank": rank, "suspected": issues.mask},
        notes=tuple(notes),
    )


def _right_labels(clean: np.ndarray | Tensor, rows: int, num_classes: int) -> np.ndarray:
    right = torch.as_tensor(clean).detach().cpu().numpy()
    check_labels(np.where(right == -1, 0, right), rows, num_classes)
    return right


def _measured(issues: Issues, wrong: np.ndarray, score: str) -> tuple[dict[str, Estimate], list[str]]:
    """What is known of the audit where the right labels are, and what that means."""
    found = {"true noise rate": proportion_interval(int(wrong.sum()), len(wrong))}
    if not wrong.any() or wrong.all():
        which = "wrong" if wrong.all() else "right"
        return found, [f"All labels are {which}, so there is nothing to tell apart and no precision to measure."]
    found["average precision"] = average_precision(issues.score, wrong)
    found["AUROC"] = area_under_roc(issues.score, wrong)
    precision, recall = precision_and_recall(issues.mask, wrong)
    if precision is not None:
        found["precision of suspected labels"] = precision
    found["recall of suspected labels"] = recall
    return found, [
        f"Average precision and AUROC rank all {len(wrong)} labels by {_spoken(score)} against the known right labels; "
        f"a random ranking has {wrong.mean():.3f} and 0.5. They hold for this kind of noise only: wrong labels that "
        "were made at random are easier to find than those of confused annotators."
    ]


def _notes(learnt: ConfidentLearning, issues: Issues, names: list[str], method: Method, score: str) -> list[str]:
    n, agrees = (
        len(learnt.labels),
        proportion_interval(int((issues.suggested == learnt.labels).sum()), len(learnt.labels)),
    )
    notes = [
        f"{len(issues.rows)} of {n} labels are suspected ({_spoken(method)}), ranked by {_spoken(score)}. A suspected "
        "label is one to look at: it may be right, and labels that are not suspected may be wrong.",
        "The noise rate is estimated by counting confident predictions. Its interval says how far other samples would "
        "move the estimate, not how far it lies from the truth: a weak model takes hard samples for wrong labels, and "
        "a model that learnt a systematic error of the labels does not see it.",
        "All of this supposes out-of-sample probabilities. A model that was trained on these labels repeats them.",
        f"The most probable class is the given label in {agrees.value:.1%} of the samples (95 % interval "
        f"{agrees.low:.1%} to {agrees.high:.1%}).",
    ]
    if missing := [names[c] for c in np.flatnonzero(learnt.class_counts == 0)]:
        listed = ", ".join(f"'{name}'" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        notes.append(
            f"{len(missing)} of {len(names)} classes have no samples, so no label can be found to be: {listed}."
        )
    return notes


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _class_table(
    learnt: ConfidentLearning, issues: Issues, noise: NoiseEstimate, names: list[str], wrong: np.ndarray | None
) -> Table:
    """Classes, the largest estimated share of wrong labels first."""
    size = len(names)
    suspected = np.bincount(learnt.labels[issues.mask], minlength=size)
    share = 1 - noise.inverse.value.diagonal()
    # the bounds of 1 - x are those of x, exchanged
    low, high = 1 - noise.inverse.high.diagonal(), 1 - noise.inverse.low.diagonal()
    truly = None if wrong is None else np.bincount(learnt.labels, weights=wrong, minlength=size)
    rows = []
    for c in np.argsort(np.where(np.isnan(share), np.inf, -share), kind="stable").tolist():
        count = int(learnt.class_counts[c])
        known = () if truly is None else (float(truly[c]) / count if count else "",)
        estimate = (float(share[c]), float(low[c]), float(high[c])) if count else ("no samples", "", "")
        threshold = float(learnt.thresholds[c]) if count else ""
        rows.append((names[c], count, *estimate, int(suspected[c]), *known, threshold))
    known_column = () if truly is None else ("true share wrong",)
    columns = ("class", "n", "estimated share wrong", "low", "high", "suspected", *known_column, "threshold")
    return Table("Label noise per class", columns, tuple(rows))


def _pair_table(learnt: ConfidentLearning, issues: Issues, noise: NoiseEstimate, names: list[str]) -> Table:
    """The most frequent estimated confusions."""
    size = len(names)
    pairs = learnt.labels[issues.mask] * size + issues.suggested[issues.mask]
    suspected = np.bincount(pairs, minlength=size * size)
    counts = learnt.calibrated.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts.ravel(), kind="stable")[:MOST_PAIRS]
    rows = []
    for cell in order[counts.ravel()[order] > 0].tolist():
        given, true = divmod(cell, size)
        share = (float(part[given, true]) for part in noise.inverse)
        rows.append((names[given], names[true], int(counts[given, true]), int(suspected[cell]), *share))
    columns = ("label", "probably", "estimated count", "suspected", "share of label", "low", "high")
    return Table("Most frequent label confusions", columns, tuple(rows))


def _score_chart(score: np.ndarray, name: str, wrong: np.ndarray | None) -> Chart:
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    groups = {"all labels": np.ones(len(score), bool)} if wrong is None else {"right": ~wrong, "wrong": wrong}
    series = []
    for group, members in groups.items():
        if members.any():
            counts, _ = np.histogram(np.clip(score[members], 0, 1), edges)
            bins = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
            series.append(Series(group, bins, (counts / members.sum()).tolist()))
    low, middle = float((score < 0.1).mean()), float(np.median(score))
    return Chart(
        title="Distribution of the score",
        kind="bar",
        x_label=f"{_spoken(name)}, lower is more suspicious",
        y_label="share of labels",
        series=tuple(series),
        description=f"Share of labels by {_spoken(name)}. {low:.1%} of them score below 0.1; the median is "
        f"{middle:.3f}.",
    )
