"""The out-of-distribution audit of finished runs: one alone, or several whose scores ZODE combines."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from weathered.audit.ood import audit_ood
from weathered.audit.ood_model import audit_model_ood, build_scores, score_values
from weathered.audit.ood_sets import synthetic_ood_sets
from weathered.audit.options import Audited, AuditOptions, audited_data
from weathered.audit.result import AuditResult
from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.data.sources import load
from weathered.loaded_run import LoadedRun
from weathered.scores.extract import extract, has_outlier_class
from weathered.scores.zode import ZODE


def default_scores(runs: Audited) -> tuple[str, ...]:
    """The scores of the ood audit where none are named: three, and that of the class of outliers where all have one."""
    own = all(has_outlier_class(run.model) for run in runs)
    return ("msp", "energy", "knn", "outlier-class") if own else ("msp", "energy", "knn")


def ood(runs: Audited, options: AuditOptions) -> AuditResult:
    """One run: each score alone. Several runs: each score combined over the runs by ZODE as well."""
    names = default_scores(runs) if options.scores is None else options.scores
    test, seed = audited_data(runs[0], options), runs[0].recipe.settings.seed
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
        for score in scores.values():
            score.fit_evidence(evidence, run.splits.train.labels)
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
