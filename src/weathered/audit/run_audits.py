"""The audits by name, each from finished runs to a result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from weathered.audit.accuracy import audit_accuracy
from weathered.audit.calibration import audit_calibration
from weathered.audit.certified import audit_certified
from weathered.audit.corruption import audit_corruption
from weathered.audit.labels.blocks import Progress
from weathered.audit.labels.of_run import LabelOptions, audit_run_labels
from weathered.audit.ood import audit_ood
from weathered.audit.ood_model import audit_model_ood, build_scores, score_values
from weathered.audit.ood_sets import synthetic_ood_sets
from weathered.audit.rejection import audit_model_rejection
from weathered.audit.result import AuditResult
from weathered.audit.retrieval import audit_retrieval, ranks_of_pairs
from weathered.audit.segmentation import audit_segmentation, count_pixels
from weathered.audit.selective import audit_selective
from weathered.audit.sets import audit_sets
from weathered.core.errors import DataError, Incompatible, SpecError
from weathered.core.predict import device_of, eval_mode, prediction_of
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources import load
from weathered.incremental.recipe_run import AnalyticClassifier
from weathered.loaded_run import LoadedRun
from weathered.nn.two_towers import TwoTowers
from weathered.scores.extract import extract, has_outlier_class
from weathered.scores.zode import ZODE
from weathered.training import group_audit, truth


@dataclass(frozen=True)
class AuditOptions:
    """What a user may say of the audits: outlier data by spec, score names, a limit of samples, certified noise, and
    what the label audit is told. scores: by default those of `default_scores`. progress: called while an audit goes on.
    views: names of the views of each image over which probabilities are averaged, none for the image alone.
    """

    ood: tuple[str, ...] = ()
    scores: tuple[str, ...] | None = None
    limit: int | None = None
    sigma: float = 0.25
    labels: LabelOptions = field(default_factory=LabelOptions)
    progress: Progress | None = None
    views: tuple[str, ...] = ()


Audited = Sequence[LoadedRun]


def _test(run: LoadedRun, options: AuditOptions, pixels: bool = False, captions: bool = False) -> Dataset:
    """The test set with the labels that count, cut to the limit by random draw.

    pixels, captions: whether the audit reads masks or captions; others are refused where the model labels pixels or
    gives no classes.
    """
    if not pixels:
        refuse_pixels(run)
    if not captions:
        refuse_towers(run)
    test = run.splits.test.replace(labels=truth(run.splits), clean_labels=None)
    if options.limit is None or options.limit >= len(test):
        return test
    rng = generator(run.recipe.settings.seed, "audit limit")
    return test.select(torch.randperm(len(test), generator=rng)[: options.limit].sort().values)


def refuse_towers(run: LoadedRun) -> None:
    """Raise Incompatible for a model without classes."""
    if isinstance(run.model, TwoTowers):
        raise Incompatible(
            f"{run.folder.path}: this audit reads classes, but the model embeds images and captions. Use --audits "
            "retrieval."
        )


def refuse_pixels(run: LoadedRun) -> None:
    """Raise Incompatible for a run on masks."""
    if run.splits.test.is_segmentation:
        raise Incompatible(
            f"{run.folder.path}: this audit reads one label for each sample, but these data have one for each pixel. "
            "Use --audits segmentation."
        )


def retrieval(runs: Audited, options: AuditOptions) -> AuditResult:
    model, run = runs[0].model, runs[0]
    if not isinstance(model, TwoTowers):
        raise Incompatible(
            f"{run.folder.path}: the retrieval audit needs a model of images and captions; train with --use "
            "contrastive on data with captions."
        )
    return audit_retrieval(*ranks_of_pairs(model, _test(run, options, captions=True), run.run))


def accuracy(runs: Audited, options: AuditOptions) -> AuditResult:
    test = _test(runs[0], options)
    logits = runs[0].predict(test)
    return audit_accuracy(logits, test.labels, test.class_names, runs[0].splits.train.true_class_counts)


def segmentation(runs: Audited, options: AuditOptions) -> AuditResult:
    test = _test(runs[0], options, pixels=True)
    if not test.is_segmentation:
        raise DataError(f"{test.name}: the segmentation audit needs labels of pixels, but each sample has one label.")
    counts = count_pixels(prediction_of(runs[0].model, runs[0].run), test)
    return audit_segmentation(counts, test.class_names, runs[0].splits.train.class_counts)


def refuse_ridge_scores(run: LoadedRun) -> None:
    """Raise Incompatible for a run whose scores are not probabilities."""
    if isinstance(run.model, AnalyticClassifier):
        raise Incompatible(
            f"{run.folder.path}: the scores of an incremental ridge classifier are not probabilities, which this audit "
            "needs. Leave it out."
        )


def calibration(runs: Audited, options: AuditOptions) -> AuditResult:
    refuse_ridge_scores(runs[0])
    test = _test(runs[0], options)
    return audit_calibration(runs[0].predict(test), test.labels)


def groups(runs: Audited, options: AuditOptions) -> AuditResult:
    test = _test(runs[0], options)
    if "group" not in test.extra:
        raise DataError(f"{test.name}: there are no groups; train with --group-column to have them audited.")
    return group_audit(runs[0].predict(test), test, runs[0].splits.train)


def selective(runs: Audited, options: AuditOptions) -> AuditResult:
    refuse_ridge_scores(runs[0])
    test = _test(runs[0], options)
    return audit_selective(runs[0].predict(test), test.labels)


def corruption(runs: Audited, options: AuditOptions) -> AuditResult:
    test, model = _test(runs[0], options), runs[0].model
    if not test.is_image:
        raise DataError(f"{test.name}: the corruption audit needs images, but the data are a table.")

    def predict(x: Tensor) -> Tensor:
        with eval_mode(model), torch.no_grad():
            return runs[0].run.test_logits(model(x.to(device_of(model)))).cpu()

    return audit_corruption(predict, test, runs[0].recipe.settings.seed)


def rejection(runs: Audited, options: AuditOptions) -> AuditResult:
    return audit_model_rejection(runs[0].model, _test(runs[0], options))


def default_scores(runs: Audited) -> tuple[str, ...]:
    """The scores of the ood audit where none are named: three, and that of the class of outliers where all have one."""
    own = all(has_outlier_class(run.model) for run in runs)
    return ("msp", "energy", "knn", "outlier-class") if own else ("msp", "energy", "knn")


def ood(runs: Audited, options: AuditOptions) -> AuditResult:
    """One run: each score alone. Several runs: each score combined over the runs by ZODE as well."""
    names = default_scores(runs) if options.scores is None else options.scores
    test, seed = _test(runs[0], options), runs[0].recipe.settings.seed
    outliers = {spec: _outliers(spec, test, options, seed) for spec in options.ood} or None
    if len(runs) == 1:
        return audit_model_ood(runs[0].model, runs[0].splits.train, test, seed, outliers, names)
    return _ensemble(runs, test, outliers, names, seed)


def _outliers(spec: str, test: Dataset, options: AuditOptions, seed: int) -> Dataset:
    size = test.inputs.shape[-1] if test.is_image else None
    data = load(spec, image_size=size, limit=options.limit, seed=seed)
    channels = test.inputs.shape[0]
    if test.is_image and data.inputs.shape[0] == 1 and channels == 3:
        grey = data.inputs.fetch(torch.arange(len(data)))
        return Dataset.of(grey.expand(-1, 3, -1, -1).contiguous(), torch.zeros(len(data)).long(), name=data.name)
    return data


def _ensemble(
    runs: Audited, test: Dataset, outliers: Mapping[str, Dataset] | None, names: Sequence[str], seed: int
) -> AuditResult:
    order = torch.randperm(len(test), generator=generator(seed, "zode calibration"))
    held, test = test.select(order[: len(test) // 2]), test.select(order[len(test) // 2 :])
    notes = [f"{len(held)} test samples calibrate the ensemble and are not audited; {len(runs)} runs are combined."]
    if outliers is None:
        outliers = synthetic_ood_sets(test, seed)
        notes.append("The outliers are synthetic, made from the test data; outliers met in practice are harder.")
    groups = {"calibration": held, "test": test, **outliers}
    by_run: list[dict[str, dict[str, np.ndarray]]] = []
    for run in runs:
        _check_same_test(runs[0], run)
        scores = build_scores(names)
        evidence = extract(run.model, run.splits.train)
        if evidence.features is None:
            raise SpecError(f"{run.folder.path}: its model offers no features.")
        for score in scores.values():
            score.fit(evidence.features, run.splits.train.labels)
        by_run.append({name: score_values(run.model, data, scores) for name, data in groups.items()})
    columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in groups}
    for name in names:
        matrix = {g: torch.as_tensor(np.stack([run[g][name] for run in by_run], 1)) for g in groups}
        ensemble = ZODE().fit(matrix["calibration"])
        for group in groups:
            columns[group][f"{name} (first run)"] = by_run[0][group][name]
            columns[group][f"zode of {name}"] = ensemble.score(matrix[group]).numpy()
    return audit_ood(columns["test"], {name: columns[name] for name in outliers}, notes)


def _check_same_test(first: LoadedRun, other: LoadedRun) -> None:
    """Refuse members of an ensemble with other test rows: some of them may be rows that a member was trained on."""
    if other.splits.test.class_names != first.splits.test.class_names:
        raise DataError(f"{other.folder.path} was trained on other classes than {first.folder.path}.")
    prints = [run.folder.read_json("run.json")["data_fingerprint"] for run in (first, other)]
    rows = [run.splits.test.rows_in_source for run in (first, other)]
    if prints[0] != prints[1] or not torch.equal(rows[0], rows[1]):
        raise DataError(
            f"{other.folder.path} has other test rows than {first.folder.path}, so it may have been trained on those "
            "to be audited. Train the members of an ensemble with one --test, or with one --data-seed and several "
            "--seed."
        )


def certified(runs: Audited, options: AuditOptions) -> AuditResult:
    test, model = _test(runs[0], options), runs[0].model
    return audit_certified(model, test, options.sigma, runs[0].recipe.settings.seed)


def labels(runs: Audited, options: AuditOptions) -> AuditResult:
    refuse_pixels(runs[0])
    refuse_towers(runs[0])
    return audit_run_labels(runs[0], options.labels, options.progress)


def sets(runs: Audited, options: AuditOptions) -> AuditResult:
    """A random half of the test set chooses the thresholds."""
    refuse_ridge_scores(runs[0])
    test = _test(runs[0], options)
    if len(test) < 2:
        raise DataError(f"{test.name}: sets of labels need at least 2 test samples, got {len(test)}.")
    order = torch.randperm(len(test), generator=generator(runs[0].recipe.settings.seed, "sets"))
    held, rest = order[: len(test) // 2], order[len(test) // 2 :]
    logits = runs[0].predict(test)
    return audit_sets(logits[held], test.labels[held], logits[rest], test.labels[rest])


def default_audits(run: LoadedRun) -> list[str]:
    """The audits that fit a run: no corruption of tables, no calibration of scores that are not probabilities, and not
    the label audit, which trains models.
    """
    if run.splits.test.is_segmentation:
        return ["segmentation"]
    if isinstance(run.model, TwoTowers):
        return ["retrieval"]
    names = ["accuracy"]
    if not isinstance(run.model, AnalyticClassifier):
        names += ["calibration", "selective"]
    if run.splits.test.has_groups:
        names.append("groups")
    if has_outlier_class(run.model):
        names.append("rejection")
    names.append("ood")
    if run.splits.test.is_image:
        names.append("corruption")
    return names


AUDITS: dict[str, Callable[[Audited, AuditOptions], AuditResult]] = {
    "accuracy": accuracy,
    "calibration": calibration,
    "corruption": corruption,
    "ood": ood,
    "rejection": rejection,
    "certified": certified,
    "labels": labels,
    "sets": sets,
    "selective": selective,
    "groups": groups,
    "segmentation": segmentation,
    "retrieval": retrieval,
}
