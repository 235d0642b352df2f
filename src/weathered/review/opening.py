"""Open the review of a run: its label audit, its training data, and the file of decisions beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weathered.audit.labels.audited_labels import AuditedLabels, labels_folder, read_audited_labels
from weathered.core.errors import DataError, WeatheredError
from weathered.data.dataset import Dataset
from weathered.data.fingerprint import data_fingerprint
from weathered.data.prepare import prepare
from weathered.recipe import Recipe
from weathered.review.review import Review
from weathered.review.store import FILE, ReviewStore, fingerprint
from weathered.stats import Estimate
from weathered.store import RunFolder


def store_path(run: Path) -> Path:
    """Where the decisions on a run's label audit are."""
    return labels_folder(run) / FILE


def open_store(run: Path, audited: AuditedLabels, class_names: tuple[str, ...]) -> ReviewStore:
    """The decisions on a run's label audit. Raises DataError if they belong to another one."""
    return ReviewStore(store_path(run), fingerprint(audited.label, audited.source_row, class_names))


def read_audit(run: Path) -> tuple[AuditedLabels, tuple[str, ...]]:
    """The label audit of a finished run and the names of its classes, without its data.

    Raises DataError or WeatheredError if the run is missing or unfinished, or has no sound label audit.
    """
    folder = RunFolder(run)
    record = folder.read_json("run.json")
    if folder.state != "done":
        raise WeatheredError(f"{run} is not finished. Go on with it by 'weathered train ... --resume'.")
    audited, names = read_audited_labels(run), tuple(record["classes"])
    size = len(audited)
    if not np.array_equal(np.sort(audited.rank), np.arange(1, size + 1)):
        raise _other_audit(run, "its ranks are not 1, 2, 3, ...")
    for column in ("label", "suggested"):
        codes = getattr(audited, column)
        if size and not (codes.min() >= 0 and codes.max() < len(names)):
            raise _other_audit(run, f"its column '{column}' names classes beyond the {len(names)} of the run")
    for column in ("like_label", "like_suggested"):
        if any(not 0 <= row < size for rows in getattr(audited, column) for row in rows):
            raise _other_audit(run, f"its column '{column}' names rows beyond its {size}")
    return audited, names


def open_review(run: Path) -> Review:
    """The review of a finished run with a label audit.

    Raises DataError or WeatheredError in one sentence if the run is missing or unfinished, has no label audit or one
    of other rows, or if its data have changed since it was trained.
    """
    audited, names = read_audit(run)
    folder = RunFolder(run)
    record = folder.read_json("run.json")
    recipe = Recipe.from_tree(record["recipe"], str(run / "run.json"))
    if data_fingerprint(recipe.data) != record["data_fingerprint"]:
        raise DataError(
            f"the data of {run} have changed since it was trained: a file was added, altered or removed. Put them "
            "back, or train and audit again."
        )
    train = prepare(recipe).train
    _check_same_rows(run, audited, train, names)
    audits = folder.read_json("audit.json") if (run / "audit.json").exists() else {}
    store = open_store(run, audited, names)
    return Review(audited, train, store, noise_estimate(audits), title=f"{train.name}, run {run.resolve().name}")


def noise_estimate(audits: Mapping[str, Any]) -> Estimate | None:
    """The estimated share of wrong labels in a run's audit.json, None where it has none."""
    kept = audits.get("labels", {}).get("summary", {}).get("estimated noise rate", {})
    values = [kept.get(name) for name in Estimate._fields]
    return None if None in values else Estimate(*values)


def _check_same_rows(run: Path, audited: AuditedLabels, train: Dataset, names: tuple[str, ...]) -> None:
    if len(audited) != len(train):
        raise _other_audit(run, f"it has {len(audited)} rows and the training set {len(train)}")
    if names != tuple(train.class_names):
        raise _other_audit(run, "the classes have other names")
    differs = np.flatnonzero(audited.label != train.labels.numpy())
    if len(differs):
        row = int(differs[0])
        was, now = names[audited.label[row]], names[int(train.labels[row])]
        raise _other_audit(run, f"training row {row} was '{was}' and is '{now}'")


def _other_audit(run: Path, why: str) -> DataError:
    return DataError(
        f"the label audit in {run} belongs to other data ({why}); make it again by 'weathered audit {run} --audits "
        "labels'."
    )
