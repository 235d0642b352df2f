"""Poison audit: signs that someone planted a trigger in the training data, read off the data and the network.

Two defences that need no knowledge of the trigger: masks reverse-engineered for each class (`reversed_triggers`), which
give the verdict, and clusters of the features of training rows (`activation_clusters`), which name suspected rows of
the classes that it names. Clusters alone give no verdict: honest classes fall in two as well.
Limits: both look for a small patch that turns images of every class to one; other attacks leave other signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from weathered.audit.activation_clusters import Clusters, standing_out
from weathered.audit.result import AuditResult, Chart, Series, Table, quoted
from weathered.audit.reversed_triggers import Reversed, anomaly_indices
from weathered.data.dataset import Dataset
from weathered.stats import Estimate, proportion_interval

ANOMALOUS = 2.0
"""Index above which the authors of Neural Cleanse call a class infected: one in 40 normal draws."""

SPLIT = 3.5
"""Index of a silhouette above which a class is said to fall in two, the usual cut for outliers by deviation."""

SMALL_SHARE = 0.35
"""Share below which the smaller cluster may be planted, since the trigger's rows are a minority."""

SHOWN = 50
"""Suspected rows in the table."""

FEWEST = 5
"""Classes that an index needs to mean something."""


def audit_poison(rows: Dataset, found: Reversed, clusters: Clusters) -> AuditResult:
    """The verdict on training rows and their network.

    rows: what the network was trained on, with the labels given to it; clean labels, where known, score the suspects.
    found: masks of all classes, in their order. clusters: of the rows. per_sample, of those rows: suspected,
    smaller_cluster, spectral_score.
    """
    names, index = rows.class_names, anomaly_indices(found.size).numpy()
    split = standing_out(clusters.silhouette)
    infected = index > ANOMALOUS if len(names) >= FEWEST else np.zeros(len(names), dtype=bool)
    falling = (split > SPLIT) & (clusters.share < SMALL_SHARE)
    if len(names) < FEWEST:
        falling = np.zeros(len(names), dtype=bool)
    labels = rows.labels.numpy()
    suspected = clusters.smaller & infected[labels]
    largest = float(index.max())
    summary = {
        "largest anomaly index": Estimate(largest, largest, largest, len(names)),
        "classes with a small reverse-engineered trigger": proportion_interval(int(infected.sum()), len(names)),
        "classes whose features fall in two": proportion_interval(int(falling.sum()), len(names)),
        "suspected rows": proportion_interval(int(suspected.sum()), len(rows)),
        **_against_truth(rows, suspected),
    }
    better = {name: name.startswith(("precision", "recall")) for name in summary}
    return AuditResult(
        "poison",
        summary,
        better,
        tables=(_classes(names, found, index, clusters, split), _suspects(rows, suspected, clusters.spectral)),
        figures=(_chart(names, found),),
        per_sample={
            "suspected": suspected,
            "smaller_cluster": clusters.smaller,
            "spectral_score": clusters.spectral,
        },
        notes=_notes(names, infected, falling, suspected, found),
    )


def _against_truth(rows: Dataset, suspected: np.ndarray) -> Mapping[str, Estimate]:
    """How well the suspects meet the rows whose label is known to be wrong."""
    if rows.clean_labels is None or not bool((rows.clean_labels != rows.labels).any()):
        return {}
    wrong = (rows.clean_labels != rows.labels).numpy()
    hits = int((suspected & wrong).sum())
    found = {"recall of wrongly labelled rows": proportion_interval(hits, int(wrong.sum()))}
    if suspected.any():
        found["precision of suspected rows"] = proportion_interval(hits, int(suspected.sum()))
    return found


def _classes(names: Sequence[str], found: Reversed, index: np.ndarray, clusters: Clusters, split: np.ndarray) -> Table:
    order = np.argsort(-index, kind="stable").tolist()
    columns_of = (found.size.numpy(), index, found.turned.numpy(), clusters.silhouette, split, clusters.share)
    rows = tuple((names[int(label)], *(float(column[label]) for column in columns_of)) for label in order)
    columns = (
        "class", "size of its mask", "anomaly index", "images turned", "silhouette", "index of silhouette",
        "share of smaller cluster",
    )  # fmt: skip
    return Table("Signs of a trigger, by class", columns, rows)


def _suspects(rows: Dataset, suspected: np.ndarray, spectral: np.ndarray) -> Table:
    chosen = np.flatnonzero(suspected)
    chosen = chosen[np.argsort(-spectral[chosen], kind="stable")][:SHOWN]
    sources = rows.rows_in_source.numpy()
    return Table(
        f"Suspected training rows, at most {SHOWN}, by spectral score",
        ("row in source", "label", "spectral score"),
        tuple((int(sources[row]), rows.class_names[int(rows.labels[row])], float(spectral[row])) for row in chosen),
    )


def _chart(names: Sequence[str], found: Reversed) -> Chart:
    known = [float(size) if np.isfinite(float(size)) else float(found.mask[0].numel()) for size in found.size]
    least = int(np.argmin(known))
    return Chart(
        "Smallest mask that turns images to each class", "bar", "class", "sum of the mask, in pixels",
        (Series("mask", list(names), known),),
        f"The smallest mask, of {known[least]:.3g} pixels, is that of '{names[least]}'; the median is "
        f"{float(np.median(known)):.3g}.",
    )  # fmt: skip


def _notes(
    names: Sequence[str], infected: np.ndarray, falling: np.ndarray, suspected: np.ndarray, found: Reversed
) -> tuple[str, ...]:
    if len(names) < FEWEST:
        return (
            f"With {len(names)} classes none can stand out from the others, so there is no verdict; it takes {FEWEST}.",
        )
    flagged = [name for name, yes in zip(names, infected, strict=True) if yes]
    halves = [name for name, yes in zip(names, falling, strict=True) if yes]
    notes = []
    if flagged:
        notes.append(
            f"Suspicious: a far smaller patch than for other classes turns images to {quoted(flagged)}. That is what a "
            "planted trigger looks like, and no proof: a class may be easy to imitate. Look at its suspected rows, and "
            "train again without them."
        )
    else:
        notes.append(
            "No class is turned to by a far smaller patch than others. That clears the network of small patches that "
            "work on all classes, as far as the search goes, and of nothing else: triggers that are spread over the "
            "image, adapted to the network or meant for some classes pass."
        )
    if halves := [name for name in flagged if name in halves]:
        notes.append(f"The features of {quoted(halves)} also fall in two more clearly than those of other classes.")
    if suspected.any():
        notes.append(
            f"{int(suspected.sum())} rows of {quoted(flagged)} lie in the smaller of two clusters of its features and "
            "are suspected; planted rows may lie outside it."
        )
    if lost := [name for name, size in zip(names, found.size, strict=True) if torch.isinf(size)]:
        notes.append(f"No patch was found that turns 99 % of the images to {quoted(lost)}; their masks count as large.")
    return tuple(notes)
