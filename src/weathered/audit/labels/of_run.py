"""The label audit of a finished run: folds of its own recipe, what they say of each label, and examples to compare."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from weathered.audit.labels.annotator_audit import annotator_findings, annotator_labels
from weathered.audit.labels.audit import Ranking, audit_labels
from weathered.audit.labels.audited_labels import AuditedLabels, labels_folder, write_audited_labels
from weathered.audit.labels.blocks import Matrix, open_matrix
from weathered.audit.labels.duplicate_audit import duplicate_findings
from weathered.audit.labels.examples import nearest_examples
from weathered.audit.labels.issues import Method
from weathered.audit.labels.quality import DEFAULT
from weathered.audit.labels.scores import Score
from weathered.audit.labels.trajectory import neighbour_agreement, two_networks
from weathered.audit.result import AuditResult
from weathered.core.atomic import write_atomically
from weathered.core.errors import DataError, Incompatible, SpecError, WeatheredError
from weathered.core.predict import predict_logits
from weathered.core.rng import generator
from weathered.core.spec import near
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.data.sources.rows import row_names
from weathered.data.splits import refuse_single_samples, stratified_folds
from weathered.incremental.recipe_run import AnalyticClassifier
from weathered.loaded_run import LoadedRun, load_run
from weathered.recipe import Recipe
from weathered.scores.extract import extract
from weathered.store import RunFolder
from weathered.sweep import Status, Watcher, run_all
from weathered.terms.area_under_margin import COLUMN

RunScore = Literal["neighbour_agreement", "two_networks", "area_under_margin"]
"""Scores that need more than one model's probabilities: its features, a second model for each fold, or its training."""

NEIGHBOURS = 10


@dataclass(frozen=True)
class LabelOptions:
    """What a user may say of the label audit.

    folds >= 2: models that are trained, each on all but one part of the rows. pred_probs: a .npy file of
    out-of-sample probabilities (N, C) of the training rows, in place of folds. score: one of `scores`, or a
    `RunScore`. method: see `issues`. annotators: columns with the labels of one person each. workers: runs at a time,
    one per core by default.
    """

    folds: int = 5
    pred_probs: Path | None = None
    score: Score | RunScore = DEFAULT
    method: Method = "prune_by_noise_rate"
    annotators: tuple[str, ...] = ()
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= 1000:
            raise SpecError(f"folds must be in [2, 1000], got {self.folds}.")
        if self.score == "two_networks" and self.pred_probs is not None:
            raise SpecError("The score two-networks trains two models for each fold; leave out --pred-probs.")


def as_label_score(name: str) -> Score | RunScore:
    """The score of this name, of probabilities or of a run; a hyphen may stand for an underscore.

    Raises SpecError if there is none.
    """
    written = name.strip().replace("-", "_")
    known = (*get_args(Score), *get_args(RunScore))
    if written not in known:
        raise SpecError(f"The score of labels must be one of {', '.join(known)}, got '{name}'.{near(written, known)}")
    return cast(Score | RunScore, written)


def audit_run_labels(run: LoadedRun, options: LabelOptions, progress: Progress | None = None) -> AuditResult:
    """Audit the training labels of a run, and write `labels/labels.parquet` beside it for the review page.

    Folds are runs of the run's recipe in `labels/folds`, so that an interrupted audit goes on where it was; a second
    audit finds them finished. Raises a WeatheredError if a class is too small for folds, a fold fails, or given
    probabilities do not fit.
    """
    if run.recipe.few_shot is not None:
        raise Incompatible(
            f"{run.folder.path}: each fold would be a few-shot run of its own. Train a recipe without "
            f"{run.recipe.few_shot.slug} to have its labels audited."
        )
    if isinstance(run.model, AnalyticClassifier):
        raise Incompatible(
            f"{run.folder.path}: the scores of an incremental ridge classifier are not probabilities, so its labels "
            "cannot be audited. Train a recipe without an incremental learner."
        )
    train = run.splits.train
    # before the folds, which take long: their columns may not be there
    given = annotator_labels(run.recipe.data, train, options.annotators) if options.annotators else None
    if options.pred_probs is None:
        probabilities: Matrix = fold_probabilities(run.folder, run.recipe, train, options, progress)
        origin = f"Probabilities are those of {options.folds} models, each asked only about rows it was not trained on."
    else:
        probabilities = open_matrix(options.pred_probs, "Probabilities")
        origin = f"Probabilities were given: {options.pred_probs.name}."
    features = extract(run.model, train).features
    ranking = _ranking(run, train, probabilities, features, options, progress)
    result = audit_labels(
        probabilities,
        train.labels,
        train.class_names,
        clean=train.clean_labels,
        score=DEFAULT if ranking else cast(Score, options.score),
        ranking=ranking,
        method=options.method,
        rng=generator(run.recipe.settings.seed, "label noise"),
        progress=progress,
    )
    write_audited_labels(run.folder.path, _to_look_at(run.recipe, train, result, features))
    findings = [duplicate_findings(train, progress)]
    if given is not None:
        findings.append(annotator_findings(given, train, options.annotators, run.recipe.settings.seed))
    return replace(
        result,
        summary={**result.summary, **{k: v for found in findings for k, v in found.summary.items()}},
        higher_is_better={**result.higher_is_better, **{k: v for f in findings for k, v in f.higher_is_better.items()}},
        tables=(*result.tables, *(table for found in findings for table in found.tables)),
        notes=(origin, *result.notes, *(note for found in findings for note in found.notes)),
    )


def _ranking(
    run: LoadedRun,
    train: Dataset,
    probabilities: Matrix,
    features: Tensor | None,
    options: LabelOptions,
    progress: Progress | None,
) -> Ranking | None:
    """The ranking by a `RunScore`; None for a score of the probabilities."""
    if options.score == "two_networks":
        second = fold_probabilities(run.folder, run.recipe, train, options, progress, second=True)
        return Ranking(options.score, two_networks(probabilities, second, train.labels).self_confidence)
    if options.score == "neighbour_agreement":
        if features is None:
            raise Incompatible(
                f"{run.folder.path}: its model offers no features, so its neighbours cannot be asked. Take another "
                "--label-score."
            )
        k = min(NEIGHBOURS, len(train) - 1)
        return Ranking(options.score, neighbour_agreement(features, train.labels, k, backend="auto"))
    if options.score == "area_under_margin":
        area = kept_areas(run.folder, len(train))
        # from 0 to 1 in the same order, 0.5 for a margin of 0
        return Ranking(options.score, 0.5 + 0.5 * area / (1 + np.abs(area)))
    return None


def kept_areas(folder: RunFolder, rows: int) -> np.ndarray:
    """Mean margins (N,) of the training rows as a run recorded them, see `AreaUnderMargin`.

    Raises Incompatible if it did not, DataError if a row was never trained on or the file is damaged.
    """
    path = folder.path / "per_sample.parquet"
    try:
        if COLUMN not in pq.read_schema(path).names:
            raise Incompatible(
                f"{folder.path} did not record margins while it trained. Train it with --use area-under-margin, or "
                "take another --label-score."
            )
        area = pq.read_table(path, columns=[COLUMN], filters=[("split", "=", "train")])[COLUMN].to_numpy()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is damaged or missing; delete the run's folder and train it again.") from error
    if len(area) != rows:
        raise DataError(f"{path} has {len(area)} training rows, the data have {rows}; train the run again.")
    if unseen := int(np.isnan(area).sum()):
        raise DataError(
            f"{folder.path}: no step saw {unseen} of the {rows} training rows, so they have no margin. Train for more "
            "epochs, without a sampler, or take another --label-score."
        )
    return area


def fold_probabilities(
    folder: RunFolder,
    recipe: Recipe,
    train: Dataset,
    options: LabelOptions,
    progress: Progress | None = None,
    second: bool = False,
) -> np.ndarray:
    """Out-of-sample probabilities (N, C) float32 of the training rows, a memory map of a file beside the run.

    second: of models on the same folds, started and trained by the draws of the next seed.
    """
    path = labels_folder(folder.path) / f"probabilities-{options.folds}{'-second' if second else ''}.npy"
    if path.exists():
        return np.asarray(open_matrix(path, "Saved probabilities"))
    refuse_single_samples(train.labels, train.class_names)
    if options.folds > len(train):
        raise SpecError(f"{options.folds} folds need as many rows, the training set has {len(train)}.")
    rows_seed = recipe.data_seed
    if second:
        settings = replace(recipe.settings, seed=recipe.settings.seed + 1)
        recipe = replace(recipe, settings=settings, data=replace(recipe.data, seed=rows_seed))
    recipes = [
        replace(recipe, data=replace(recipe.data, fold=f"{k + 1}/{options.folds}")) for k in range(options.folds)
    ]
    out = labels_folder(folder.path) / "folds"
    watcher = None if progress is None else _as_steps(len(recipes), progress)
    outcomes = run_all(recipes, out, workers=options.workers, watcher=watcher)
    failed = next((outcome for outcome in outcomes if outcome.error), None)
    if failed is not None:
        raise WeatheredError(
            f"{failed.folder.path}: a fold failed: {failed.error.rstrip('.') if failed.error else ''}."
        )
    fold = stratified_folds(train.labels, options.folds, generator(rows_seed, "folds"))

    def fill(part: Path) -> None:
        shape = (len(train), train.num_classes)
        matrix = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        for number, outcome in enumerate(outcomes):
            one = load_run(outcome.folder.path)
            held = train.select(fold == number)
            logits = one.run.test_logits(predict_logits(one.model, held, run=one.run))
            matrix[(fold == number).numpy()] = logits.softmax(1).numpy()
            if progress is not None:
                progress("asking each fold's model", number + 1, len(outcomes))
        matrix.flush()

    write_atomically(path, fill)
    return np.asarray(open_matrix(path, "Saved probabilities"))


def _as_steps(runs: int, progress: Progress) -> Watcher:
    """A watcher of several runs as one count of thousandths."""
    share: dict[str, float] = {}

    def watch(status: Status) -> None:
        share[status.hash] = 1.0 if status.ended else status.step / max(status.total, 1)
        progress("training folds", round(1000 * sum(share.values())), 1000 * runs)

    return watch


def _to_look_at(recipe: Recipe, train: Dataset, result: AuditResult, features: Tensor | None) -> AuditedLabels:
    suspected, suggested = result.per_sample["suspected"], result.per_sample["suggested"]
    rows = train.rows_in_source.numpy()
    labels = train.labels.numpy()
    near: list[Sequence[list[int]]] = []
    for classes in (labels, suggested):
        near.append(nearest_examples(features, labels, suspected, classes))
    return AuditedLabels(
        source_row=rows,
        name=row_names(
            recipe.data.train,
            rows,
            root=None if recipe.data.root is None else Path(recipe.data.root),
            label_column=recipe.data.label_column,
            clean_column=recipe.data.clean_column,
            not_features=recipe.data.not_features,
            group_column=recipe.data.group_column,
            chosen=recipe.data.rows,
        ),
        label=labels,
        suggested=suggested,
        score=result.per_sample["score"],
        rank=result.per_sample["rank"],
        suspected=suspected,
        like_label=list(near[0]),
        like_suggested=list(near[1]),
    )
