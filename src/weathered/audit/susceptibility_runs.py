"""Finished runs on the two axes of susceptibility: which fitted their labels without learning them by heart."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from weathered.audit.susceptibility import Region, regions
from weathered.core.errors import DataError
from weathered.registry import TABLE
from weathered.store import RunFolder, find_runs

SLUG = "susceptibility"


class RunRegion(NamedTuple):
    """One finished run: its folder, accuracy on its given training labels, susceptibility in nats, and region."""

    path: Path
    train_accuracy: float
    susceptibility: float
    region: Region


def regions_of_runs(paths: Iterable[Path]) -> list[RunRegion]:
    """Where each of several finished runs stands, see `regions`; those of region 1 are the ones to take.

    paths: run folders, or folders that hold some. Runs must have been trained on the same data, with the probe
    `susceptibility` under the same options. Warns where they differ in the loss or, unless the probe has a rate of its
    own, in the optimizer, its rate or its schedule: such susceptibilities are of other scales.
    Raises DataError naming a run that is unfinished, damaged, without a finite susceptibility, or of other data or
    another probe than the first.
    """
    folders = find_runs(paths)
    records = [_record(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        for what, of in (("data", _data), ("probe", _probe)):
            if of(record) != of(records[0]):
                raise DataError(f"{folder.path} has another {what} than {folders[0].path}; compare runs that share it.")
    shared = {"loss": _losses}
    if "probe_lr" not in _probe(records[0]):
        shared["optimizer, rate or schedule"] = _steps
    for what, of in shared.items():
        other = [
            str(folder.path) for folder, record in zip(folders, records, strict=True) if of(record) != of(records[0])
        ]
        if other:
            warnings.warn(
                f"{' and '.join(other)} trained with another {what} than {folders[0].path}, so their susceptibilities "
                "are of another scale; compare them with care",
                stacklevel=2,
            )
    accuracy, zeta = [_train_accuracy(folder) for folder in folders], [_zeta(folder) for folder in folders]
    rows = zip(folders, accuracy, zeta, regions(accuracy, zeta), strict=True)
    return [RunRegion(folder.path, fitted, gauge, region) for folder, fitted, gauge, region in rows]


def _record(folder: RunFolder) -> dict[str, Any]:
    record = folder.read_json("run.json")
    if folder.state != "done":
        raise DataError(f"{folder.path} is not finished; go on with it by 'weathered train ... --resume'.")
    if not any(use["slug"] == SLUG for use in record["resolved"]["use"]):
        raise DataError(f"{folder.path} was trained without the probe; train it with --use {SLUG}, or leave it out.")
    return record


def _data(record: dict[str, Any]) -> Any:
    return record["recipe"]["data"], record["data_fingerprint"]


def _probe(record: dict[str, Any]) -> Any:
    return next(use["options"] for use in record["resolved"]["use"] if use["slug"] == SLUG)


def _losses(record: dict[str, Any]) -> Any:
    losses = [use for use in record["resolved"]["use"] if TABLE[use["slug"]].slot == "loss"]
    return losses or [{"slug": "cross-entropy", "options": {}}]


def _steps(record: dict[str, Any]) -> Any:
    settings = record["resolved"]["settings"]
    scaled = (settings["lr_samples"], settings["batch_size"]) if settings.get("lr_samples") else None
    return [*(settings[name] for name in ("optimizer", "lr", "schedule", "warmup")), scaled]


def _zeta(folder: RunFolder) -> float:
    lines = folder.metrics()
    zeta = lines[-1].get(SLUG) if lines else None
    if zeta is None:
        raise DataError(f"{folder.path} has no finite susceptibility in metrics.jsonl; leave it out.")
    return zeta


def _train_accuracy(folder: RunFolder) -> float:
    path = folder.path / "per_sample.parquet"
    try:
        table = pq.read_table(path, columns=["label", "predicted"], filters=[("split", "=", "train")])
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is damaged or missing; delete the run's folder and train it again.") from error
    return float((table["label"].to_numpy() == table["predicted"].to_numpy()).mean())
