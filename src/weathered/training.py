"""Train one recipe into a run folder, resumably, and read a finished run back."""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from weathered.assemble import Parts, build, build_parts, import_part, resolve
from weathered.audit.accuracy import audit_accuracy
from weathered.audit.calibration import audit_calibration
from weathered.audit.result import AuditResult
from weathered.core.checkpoint import newest_checkpoint, save_weights
from weathered.core.errors import CheckpointError, DataError, WeatheredError
from weathered.core.fit import fit
from weathered.core.predict import predict_logits
from weathered.core.run import Run
from weathered.data.dataset import Dataset
from weathered.data.fingerprint import data_fingerprint
from weathered.data.prepare import Splits, prepare
from weathered.incremental.recipe_run import (
    AnalyticClassifier,
    base_split,
    incremental_audit,
    learn_phases,
    phases_of,
)
from weathered.nn.build import build_model
from weathered.recipe import Recipe
from weathered.store import RunFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def build_run(recipe: Recipe, splits: Splits, fabric: Fabric | None = None) -> Run:
    """The run a recipe describes, ready for its first step; refused combinations raise here.

    A recipe with an incremental learner trains on its base classes.
    """
    if learner_of(recipe) is not None:
        splits = base_split(splits, phases_of(recipe, splits.train.num_classes))
    parts = build_parts(resolve(recipe.use), splits.train)
    head = resolved_head(recipe, parts)

    def model(seed: int) -> nn.Module:
        return build_model(recipe.model, splits.train, head=head, seed=seed)

    return Run(
        model,
        splits.train,
        validation=splits.validation,
        settings=recipe.settings,
        fabric=fabric,
        **parts.slots,
    )


def learner_of(recipe: Recipe) -> Any:
    """The recipe's incremental learner, freshly built, or None."""
    found = [use for use in resolve(recipe.use) if use.entry.slot == "learner"]
    return build(found[0]) if found else None


def resolved_head(recipe: Recipe, parts: Parts) -> str:
    """The head as asked, or under `auto` the one the parts need."""
    return parts.head if recipe.head == "auto" else recipe.head


def train(
    recipe: Recipe,
    out: Path = Path("runs"),
    *,
    observer: Callable[[Run], None] | None = None,
    fabric: Fabric | None = None,
    resume: bool = True,
) -> RunFolder:
    """Train a recipe into `out`/<hash> and return the folder; a finished one is returned as it is.

    observer: called after each step. fabric: a launched Fabric for several devices, of which the first writes.
    resume: go on from a checkpoint; otherwise an unfinished folder is refused.
    """
    folder = RunFolder(out / recipe.hash)
    fingerprint = data_fingerprint(recipe.data)
    _same_data(folder, fingerprint)
    if folder.state == "done":
        return folder
    if folder.state == "incomplete" and not resume and newest_checkpoint(folder.checkpoints):
        raise WeatheredError(
            f"{folder.path} holds an unfinished run of this recipe. Add --resume to go on, or delete it."
        )
    splits = prepare(recipe)
    run = build_run(recipe, splits, fabric)
    if not run.fabric.is_global_zero:
        run.fabric.barrier()
        fit(run, folder=folder.checkpoints, recipe_hash=recipe.hash, observer=observer)
        run.fabric.barrier()
        return folder
    folder.path.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if folder.state == "done":
            return folder
        record = _start_record(recipe, run, folder, fingerprint)
        folder.write_json("run.json", record)
        run.fabric.barrier()
        seconds = _train(run, splits, folder, recipe.hash, observer)
        _conclude(recipe, run, splits, folder, record, seconds)
        run.fabric.barrier()
    return folder


def _train(
    run: Run, splits: Splits, folder: RunFolder, recipe_hash: str, observer: Callable[[Run], None] | None
) -> float:
    newest = newest_checkpoint(folder.checkpoints)
    folder.keep_metrics_until(int(newest.name.removeprefix("step-")) if newest else 0)
    lines = folder.metrics()
    begun, before = time.monotonic(), lines[-1]["seconds"] if lines else 0.0
    epochs, wanted = run.settings.epochs, run.settings.evaluations
    marks = {round(epochs * (k + 1) / wanted) for k in range(wanted)} if wanted else set()

    def after_epoch(run: Run, loss: float) -> None:
        line: dict[str, Any] = {"step": run.step, "epoch": run.epoch, "train_loss": loss}
        if run.epoch in marks or run.epoch == epochs:
            labels = truth(splits)
            line["test_accuracy"] = float((run.predict(splits.test).argmax(1) == labels).double().mean())
        folder.append_metrics({**line, "seconds": before + time.monotonic() - begun})

    fit(run, folder=folder.checkpoints, recipe_hash=recipe_hash, observer=observer, after_epoch=after_epoch)
    return before + time.monotonic() - begun


def truth(splits: Splits) -> Tensor:
    """The test labels that count: the clean ones where they are known."""
    return splits.test.labels if splits.test.clean_labels is None else splits.test.clean_labels


def _conclude(
    recipe: Recipe, run: Run, splits: Splits, folder: RunFolder, record: dict[str, Any], seconds: float
) -> None:
    predictor, audits = run.procedure.predictor(run), []
    learner = learner_of(recipe)
    if learner is not None:
        groups = phases_of(recipe, splits.train.num_classes)
        predictor, result = learn_phases(learner, predictor, splits, truth(splits), groups)
        audits.append(incremental_audit(result, splits.train.class_names))
    logits = [run.test_logits(predict_logits(predictor, data, run=run)) for data in (splits.train, splits.test)]
    audits += standard_audits(logits[1], splits)[: 1 if learner is not None else None]
    folder.write_json("audit.json", {result.audit: result.to_json() for result in audits})
    columns = _per_sample(splits, *logits)
    if learner is not None:
        # ridge scores are no logits: nothing that reads them as probabilities is kept
        columns = {name: values for name, values in columns.items() if name not in PROBABILISTIC}
    folder.write_per_sample(columns)
    save_weights(folder.weights, predictor)
    results = {name: value._asdict() for result in audits for name, value in result.summary.items()}
    folder.write_json("run.json", {**record, "results": results, "seconds": seconds})
    folder.finish()


def standard_audits(test_logits: Tensor, splits: Splits) -> list[AuditResult]:
    """Accuracy and calibration on the test set, which every run gets."""
    labels, names = truth(splits), splits.test.class_names
    return [
        audit_accuracy(test_logits, labels, names, train_counts=splits.train.class_counts),
        audit_calibration(test_logits, labels),
    ]


PROBABILISTIC = ("confidence", "label_probability", "loss")


def _per_sample(splits: Splits, train_logits: Tensor, test_logits: Tensor) -> dict[str, Any]:
    columns: dict[str, list[np.ndarray]] = {}
    for name, dataset, logits in (("train", splits.train, train_logits), ("test", splits.test, test_logits)):
        probabilities = logits.softmax(1)
        confidence, predicted = probabilities.max(1)
        unknown = torch.full_like(dataset.labels, -1)
        rows = {
            "split": np.full(len(dataset), name),
            "index": np.arange(len(dataset)),
            "label": dataset.labels.numpy(),
            "clean_label": (unknown if dataset.clean_labels is None else dataset.clean_labels).numpy(),
            "predicted": predicted.numpy(),
            "confidence": confidence.numpy(),
            "label_probability": probabilities.gather(1, dataset.labels[:, None])[:, 0].numpy(),
            "loss": nn.functional.cross_entropy(logits, dataset.labels, reduction="none").numpy(),
        }
        for column, values in rows.items():
            columns.setdefault(column, []).append(values)
    return {column: np.concatenate(values) for column, values in columns.items()}


def _same_data(folder: RunFolder, fingerprint: str) -> None:
    """Refuse a folder whose run was made from other files than those that are there now."""
    if (folder.path / "run.json").exists() and folder.read_json("run.json")["data_fingerprint"] != fingerprint:
        raise DataError(
            f"the data have changed since {folder.path} was trained on them. Use another --out, or delete the folder."
        )


def _start_record(recipe: Recipe, run: Run, folder: RunFolder, fingerprint: str) -> dict[str, Any]:
    threads = torch.get_num_threads()
    if (folder.path / "run.json").exists():
        # the number of threads changes the order of sums: a resumed run keeps it
        threads = int(folder.read_json("run.json").get("threads", threads))
        torch.set_num_threads(threads)
    parts = resolve(recipe.use)
    record = {
        "hash": recipe.hash,
        "recipe": recipe.to_tree(),
        "resolved": recipe.canonical(),
        "data_fingerprint": fingerprint,
        "data_notes": list(run.train.notes),
        "train_size": len(run.train),
        "classes": list(run.train.class_names),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seed": recipe.settings.seed,
        "device": str(run.device),
        "devices": run.fabric.world_size,
        "threads": threads,
        "versions": {name: version(name) for name in ("weathered", "torch", "torchvision", "timm", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "source": {use.slug: _source_hash(import_part(use.entry)) for use in parts},
    }
    _same_code(folder, record)
    return record


def _same_code(folder: RunFolder, record: dict[str, Any]) -> None:
    """Refuse to go on with a run that other code began: it would be neither the one nor the other."""
    if newest_checkpoint(folder.checkpoints) is None:
        return
    before = folder.read_json("run.json")
    for kind in ("versions", "source"):
        changed = [name for name, value in record[kind].items() if before[kind].get(name) != value]
        if changed:
            raise WeatheredError(
                f"{folder.path} was begun with other code ({', '.join(changed)} changed since) and cannot be "
                "resumed faithfully. Delete it to start over."
            )


def _source_hash(part: Any) -> str:
    path = inspect.getsourcefile(part)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12] if path else ""


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold the folder's lock; raises WeatheredError if another process trains the same recipe."""
    with (folder.path / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WeatheredError(f"{folder.path} is being trained by another process. Wait for it.") from error
        yield


@dataclass(frozen=True)
class LoadedRun:
    """A finished run: its folder, recipe, data, and the network that predicts."""

    folder: RunFolder
    recipe: Recipe
    splits: Splits
    run: Run
    model: nn.Module

    def predict(self, dataset: Dataset) -> Tensor:
        """Test-time logits (N, C) on a data set."""
        return self.run.test_logits(predict_logits(self.model, dataset, run=self.run))


def load_run(path: Path | str) -> LoadedRun:
    """Read a finished run back, with its data. Raises a WeatheredError if it is unfinished or damaged."""
    folder = RunFolder(Path(path))
    record = folder.read_json("run.json")
    if folder.state != "done":
        raise WeatheredError(f"{folder.path} is not finished. Go on with it by 'weathered train ... --resume'.")
    recipe = Recipe.from_tree(record["recipe"], str(folder.path / "run.json"))
    _same_data(folder, data_fingerprint(recipe.data))
    splits = prepare(recipe)
    run = build_run(recipe, splits)
    model = run.procedure.predictor(run)
    try:
        state = load_file(folder.weights)
        if learner_of(recipe) is not None:
            width, expansion = state["expansion"].shape
            model = AnalyticClassifier(model, None, width, expansion, splits.train.num_classes)
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder.weights} is damaged or belongs to another recipe.") from error
    return LoadedRun(folder, recipe, splits, run, model)
