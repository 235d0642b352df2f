"""Train one recipe into a run folder, resumably."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from weathered.assemble import Parts, build, build_parts, resolve
from weathered.audit.accuracy import audit_accuracy
from weathered.audit.calibration import audit_calibration
from weathered.audit.groups import audit_groups
from weathered.audit.rejection import audit_model_rejection
from weathered.audit.result import AuditResult
from weathered.audit.retrieval import audit_retrieval, ranks_of_pairs, recall_at
from weathered.audit.segmentation import audit_segmentation, count_pixels
from weathered.core.checkpoint import newest_checkpoint, save_checkpoint, save_weights
from weathered.core.distributed import any_process, together
from weathered.core.errors import WeatheredError
from weathered.core.fit import fit, parts_of
from weathered.core.predict import predict_logits, prediction_of
from weathered.core.run import Run
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.data.fingerprint import data_fingerprint
from weathered.data.prepare import Splits, prepare
from weathered.fewshot.recipe_run import (
    Saver,
    check_few_shot,
    few_shot_audit,
    learn_few_shot,
    method_of,
    write_outcome,
)
from weathered.incremental.recipe_run import (
    base_split,
    incremental_audit,
    learn_phases,
    phases_of,
)
from weathered.nn.build import build_model
from weathered.nn.two_towers import TwoTowers
from weathered.recipe import Recipe
from weathered.run_record import alone, check_same_data, same_threads, start_record
from weathered.scores.extract import has_outlier_class
from weathered.store import RunFolder
from weathered.unread import unread_data

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def build_run(recipe: Recipe, splits: Splits, fabric: Fabric | None = None) -> Run:
    """The run a recipe describes, ready for its first step; refused combinations raise here.

    A recipe with an incremental learner or a few-shot method trains on its base classes.
    """
    recipe = recipe.applied
    if learner_of(recipe) is not None:
        splits = base_split(splits, phases_of(recipe, splits.train.num_classes))
    parts = build_parts(resolve(recipe.use), splits.train)
    head = resolved_head(recipe, parts)

    def model(seed: int) -> nn.Module:
        return build_model(recipe.model, splits.train, head=head, seed=seed)

    run = Run(
        model,
        splits.train,
        validation=splits.validation,
        aux=splits.aux,
        settings=recipe.settings,
        fabric=fabric,
        **parts.slots,
    )
    run.procedure.check_test(recipe.data, splits.test)
    if (few_shot := method_of(recipe)) is not None:
        check_few_shot(few_shot, run)
    return run


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
    watch: Progress | None = None,
    fabric: Fabric | None = None,
    resume: bool = True,
) -> RunFolder:
    """Train a recipe into `out`/<hash> and return the folder; a finished one is returned as it is.

    observer: called after each step. watch: told what a few-shot method does after training. fabric: a launched Fabric
    for several devices, of which the first writes.
    resume: go on from a checkpoint; otherwise an unfinished folder is refused.
    """
    folder = RunFolder(out / recipe.hash)
    fingerprint = data_fingerprint(recipe.data)
    check_same_data(folder, fingerprint)
    if folder.state == "done":
        return folder
    if folder.state == "incomplete" and not resume and newest_checkpoint(folder.checkpoints):
        raise WeatheredError(
            f"{folder.path} holds an unfinished run of this recipe. Add --resume to go on, or delete it."
        )
    with together(fabric):
        splits = prepare(recipe)
    run = build_run(recipe, splits, fabric)
    first = run.fabric.is_global_zero
    record: dict[str, Any] = {}
    with ExitStack() as held:
        with together(run.fabric):
            held.enter_context(same_threads(folder))
            if first:
                folder.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(alone(folder))
        if any_process(run.fabric, first and folder.state == "done"):
            return folder
        with together(run.fabric):
            if first:
                notes = {"unread": unread_data(run), "idle": recipe.idle_tricks()}
                record = {**start_record(recipe, run, folder, fingerprint), **notes}
                folder.write_json("run.json", record)
        if first:
            record["seconds"] = _train_and_watch(run, splits, folder, recipe.hash, observer)
        else:
            fit(run, folder=folder.checkpoints, recipe_hash=recipe.hash)
        if recipe.few_shot is not None:
            # what follows may take long, so a resumed run need not train again
            state = run.state_dict()
            if first:
                save_checkpoint(folder.checkpoints, state, recipe.hash)
        with together(run.fabric):
            if first:
                _conclude(recipe, run, splits, folder, record, watch)
    return folder


def _train_and_watch(
    run: Run, splits: Splits, folder: RunFolder, recipe_hash: str, observer: Callable[[Run], None] | None
) -> float:
    """Train, write metrics.jsonl, and return the seconds it took, those before a resume included."""
    newest = newest_checkpoint(folder.checkpoints)
    folder.keep_metrics_until(int(newest.name.removeprefix("step-")) if newest else 0)
    lines = folder.metrics()
    begun, before = time.monotonic(), lines[-1]["seconds"] if lines else 0.0
    epochs, wanted = run.settings.epochs, run.settings.evaluations
    marks = {round(epochs * (k + 1) / wanted) for k in range(wanted)} if wanted else set()

    def after_epoch(run: Run, loss: float) -> None:
        line: dict[str, Any] = {"step": run.step, "epoch": run.epoch, "train_loss": loss}
        line |= {name: value for part in parts_of(run) for name, value in part.metrics().items()}
        if run.epoch in marks or run.epoch == epochs:
            line |= _test_figure(run, splits)
        folder.append_metrics({**line, "seconds": before + time.monotonic() - begun})

    fit(run, folder=folder.checkpoints, recipe_hash=recipe_hash, observer=observer, after_epoch=after_epoch)
    return before + time.monotonic() - begun


def group_audit(logits: Tensor, test: Dataset, train: Dataset) -> AuditResult:
    """The audit of the groups of a test set, with the training samples of each where the training set has groups."""
    names = test.names_of_groups
    trained = torch.bincount(train.extra["group"], minlength=len(names)) if "group" in train.extra else None
    return audit_groups(logits, test.labels, test.extra["group"], names, test.class_names, trained)


def _test_figure(run: Run, splits: Splits) -> dict[str, float]:
    """What a run is followed by: accuracy, or the recall of captions at 1 of two towers."""
    predictor = run.procedure.predictor(run)
    if isinstance(predictor, TwoTowers):
        return {"test_recall_at_1": recall_at(ranks_of_pairs(predictor, splits.test, run)[0], 1).value}
    return {"test_accuracy": _test_accuracy(run, splits)}


def _test_accuracy(run: Run, splits: Splits) -> float:
    if splits.test.is_segmentation:
        return count_pixels(prediction_of(run.procedure.predictor(run), run), splits.test).accuracy
    return float((run.predict(splits.test).argmax(1) == truth(splits)).double().mean())


def truth(splits: Splits) -> Tensor:
    """The test labels that count: the clean ones where they are known."""
    return splits.test.labels if splits.test.clean_labels is None else splits.test.clean_labels


def _conclude(
    recipe: Recipe, run: Run, splits: Splits, folder: RunFolder, record: dict[str, Any], watch: Progress | None
) -> None:
    predictor, audits = run.procedure.predictor(run), []
    run.procedure.leave(run, folder.path)
    learner = learner_of(recipe)
    if learner is not None:
        groups = phases_of(recipe, splits.train.num_classes)
        predictor, result = learn_phases(learner, predictor, splits, truth(splits), groups)
        audits.append(incremental_audit(result, splits.train.class_names))
    few_shot = method_of(recipe)
    if few_shot is not None:
        saver = Saver(folder, recipe.hash, recipe.settings.checkpoint_seconds)
        saver.restore(few_shot)
        options = recipe.data.episode_options
        outcome = learn_few_shot(few_shot, predictor, splits, options, recipe.data_seed, saver, watch)
        write_outcome(folder, outcome)
        audits.append(few_shot_audit(outcome, options, splits.novel[0].num_classes))
    if splits.train.is_segmentation:
        _conclude_segmentation(run, splits, folder, record, predictor)
        return
    if isinstance(predictor, TwoTowers):
        _conclude_retrieval(run, splits, folder, record, predictor)
        return
    logits = [run.test_logits(predict_logits(predictor, data, run=run)) for data in (splits.train, splits.test)]
    audits += standard_audits(logits[1], splits)[: 1 if learner is not None else None]
    if has_outlier_class(predictor):
        audits.append(audit_model_rejection(predictor, splits.test.replace(labels=truth(splits), clean_labels=None)))
    columns = _per_sample(splits, *logits) | _of_parts(run, splits)
    if learner is not None:
        # ridge scores are no logits: nothing that reads them as probabilities is kept
        columns = {name: values for name, values in columns.items() if name not in PROBABILISTIC}
    _write(folder, record, audits, columns, predictor)


def _conclude_segmentation(
    run: Run, splits: Splits, folder: RunFolder, record: dict[str, Any], predictor: nn.Module
) -> None:
    predict = prediction_of(predictor, run)
    train, test = (count_pixels(predict, data) for data in (splits.train, splits.test))
    audit = audit_segmentation(test, splits.test.class_names, splits.train.class_counts)
    columns: dict[str, list[np.ndarray]] = {}
    for name, dataset, counts in (("train", splits.train, train), ("test", splits.test, test)):
        rows = {
            "split": np.full(len(dataset), name),
            "index": np.arange(len(dataset)),
            "label": dataset.labels.numpy(),
            "clean_label": np.full(len(dataset), -1),
            "predicted": counts.main,
            "confidence": counts.confidence,
            "label_probability": counts.label_probability,
            "loss": counts.loss,
        }
        for column, values in rows.items():
            columns.setdefault(column, []).append(values)
    _write(folder, record, [audit], {name: np.concatenate(parts) for name, parts in columns.items()}, predictor)


def _conclude_retrieval(
    run: Run, splits: Splits, folder: RunFolder, record: dict[str, Any], predictor: TwoTowers
) -> None:
    """Ranks are among the pairs of the same split."""
    columns: dict[str, list[np.ndarray]] = {}
    audits: list[AuditResult] = []
    for name, dataset in (("train", splits.train), ("test", splits.test)):
        ranks = ranks_of_pairs(predictor, dataset, run)
        audits = [audit_retrieval(*ranks)]
        rows = {
            "split": np.full(len(dataset), name),
            "index": np.arange(len(dataset)),
            "label": dataset.labels.numpy(),
            "rank_of_caption": ranks[0].numpy(),
            "rank_of_image": ranks[1].numpy(),
        }
        for column, values in rows.items():
            columns.setdefault(column, []).append(values)
    _write(folder, record, audits, {name: np.concatenate(parts) for name, parts in columns.items()}, predictor)


def _write(
    folder: RunFolder,
    record: dict[str, Any],
    audits: list[AuditResult],
    columns: dict[str, Any],
    predictor: nn.Module,
) -> None:
    """All that a finished run leaves, the mark that it is finished last."""
    folder.write_json("audit.json", {result.audit: result.to_json() for result in audits})
    folder.write_per_sample(columns)
    save_weights(folder.weights, predictor)
    results = {name: value._asdict() for result in audits for name, value in result.summary.items()}
    folder.write_json("run.json", {**record, "results": results})
    folder.finish()


def standard_audits(test_logits: Tensor, splits: Splits) -> list[AuditResult]:
    """Accuracy and calibration on the test set, which every run gets, and groups where there are any."""
    labels, names = truth(splits), splits.test.class_names
    found = [
        audit_accuracy(test_logits, labels, names, train_counts=splits.train.true_class_counts),
        audit_calibration(test_logits, labels),
    ]
    if splits.test.has_groups:
        found.append(group_audit(test_logits, splits.test.replace(labels=labels), splits.train))
    return found


PROBABILISTIC = ("confidence", "label_probability", "loss")


def _of_parts(run: Run, splits: Splits) -> dict[str, np.ndarray]:
    """What parts kept of each training row; NaN for the test rows."""
    unseen = np.full(len(splits.test), np.nan)
    found = [item for part in parts_of(run) for item in part.row_columns().items()]
    return {name: np.concatenate([values.double().numpy(), unseen]) for name, values in found}


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
