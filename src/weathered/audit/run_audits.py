"""The audits by name, each from finished runs to a result."""

from collections.abc import Callable

import torch
from torch import Tensor

from weathered.audit.accuracy import audit_accuracy
from weathered.audit.backdoor_of_run import backdoor
from weathered.audit.calibration import audit_calibration
from weathered.audit.certified import SIGMA, audit_certified, longest
from weathered.audit.certified_linf import audit_certified_linf
from weathered.audit.corruption import audit_corruption
from weathered.audit.labels.of_run import audit_run_labels
from weathered.audit.ood_of_runs import ood
from weathered.audit.options import (
    Audited,
    AuditOptions,
    audited_data,
    refuse_pixels,
    refuse_ridge_scores,
    refuse_towers,
)
from weathered.audit.pieces import Pieces
from weathered.audit.poison_of_run import poison
from weathered.audit.rejection import audit_model_rejection
from weathered.audit.result import AuditResult
from weathered.audit.retrieval import audit_retrieval, ranks_of_pairs
from weathered.audit.robustness_of_run import robustness
from weathered.audit.segmentation import audit_segmentation, count_pixels
from weathered.audit.selective import audit_selective
from weathered.audit.sets import audit_sets
from weathered.audit.shift_of_run import shift
from weathered.audit.shortcut_of_run import shortcut
from weathered.core.errors import DataError, Incompatible
from weathered.core.predict import device_of, eval_mode, prediction_of
from weathered.core.rng import generator
from weathered.incremental.recipe_run import AnalyticClassifier
from weathered.loaded_run import LoadedRun
from weathered.nn.linf_net import LinfNetwork
from weathered.nn.two_towers import TwoTowers
from weathered.scores.extract import has_outlier_class
from weathered.training import group_audit


def retrieval(runs: Audited, options: AuditOptions) -> AuditResult:
    model, run = runs[0].model, runs[0]
    if not isinstance(model, TwoTowers):
        raise Incompatible(
            f"{run.folder.path}: the retrieval audit needs a model of images and captions; train with --use "
            "contrastive on data with captions."
        )
    return audit_retrieval(*ranks_of_pairs(model, audited_data(run, options, captions=True), run.run))


def accuracy(runs: Audited, options: AuditOptions) -> AuditResult:
    test = audited_data(runs[0], options)
    logits = runs[0].predict(test)
    return audit_accuracy(logits, test.labels, test.class_names, runs[0].splits.train.true_class_counts)


def segmentation(runs: Audited, options: AuditOptions) -> AuditResult:
    test = audited_data(runs[0], options, pixels=True)
    if not test.is_segmentation:
        raise DataError(f"{test.name}: the segmentation audit needs labels of pixels, but each sample has one label.")
    counts = count_pixels(prediction_of(runs[0].model, runs[0].run), test)
    return audit_segmentation(counts, test.class_names, runs[0].splits.train.class_counts)


def calibration(runs: Audited, options: AuditOptions) -> AuditResult:
    refuse_ridge_scores(runs[0])
    test = audited_data(runs[0], options)
    return audit_calibration(runs[0].predict(test), test.labels)


def groups(runs: Audited, options: AuditOptions) -> AuditResult:
    test = audited_data(runs[0], options)
    if "group" not in test.extra:
        raise DataError(f"{test.name}: there are no groups; train with --group-column to have them audited.")
    return group_audit(runs[0].predict(test), test, runs[0].splits.train)


def selective(runs: Audited, options: AuditOptions) -> AuditResult:
    refuse_ridge_scores(runs[0])
    test = audited_data(runs[0], options)
    return audit_selective(runs[0].predict(test), test.labels)


def corruption(runs: Audited, options: AuditOptions) -> AuditResult:
    test, model = audited_data(runs[0], options), runs[0].model
    if not test.is_image:
        raise DataError(f"{test.name}: the corruption audit needs images, but the data are {test.kind}.")

    def predict(x: Tensor) -> Tensor:
        with eval_mode(model), torch.no_grad():
            return runs[0].run.test_logits(model(x.to(device_of(model)))).cpu()

    with Pieces.of(runs[0], "corruption", limit=options.limit) as pieces:
        return audit_corruption(predict, test, runs[0].recipe.settings.seed, pieces=pieces, watch=options.progress)


def rejection(runs: Audited, options: AuditOptions) -> AuditResult:
    return audit_model_rejection(runs[0].model, audited_data(runs[0], options))


def certified(runs: Audited, options: AuditOptions) -> AuditResult:
    """By randomised smoothing where a noise is given; otherwise by what the network itself guarantees, if anything."""
    test, model = audited_data(runs[0], options), runs[0].model
    if isinstance(model, LinfNetwork) and options.sigma is None:
        return audit_certified_linf(model, test)
    if not test.is_image:
        raise DataError(f"{test.name}: the certified audit needs images, but the data are {test.kind}.")
    if options.announce is not None:
        options.announce(f"certified: at most {longest(model, test)}, less where images are given up early")
    sigma, seed = SIGMA if options.sigma is None else options.sigma, runs[0].recipe.settings.seed
    with Pieces.of(runs[0], "certified", sigma=sigma, limit=options.limit) as pieces:
        return audit_certified(model, test, sigma, seed, pieces=pieces, watch=options.progress)


def labels(runs: Audited, options: AuditOptions) -> AuditResult:
    refuse_pixels(runs[0])
    refuse_towers(runs[0])
    return audit_run_labels(runs[0], options.labels, options.progress)


def sets(runs: Audited, options: AuditOptions) -> AuditResult:
    """A random half of the test set chooses the thresholds."""
    refuse_ridge_scores(runs[0])
    test = audited_data(runs[0], options)
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
    "robustness": robustness,
    "shift": shift,
    "shortcut": shortcut,
    "backdoor": backdoor,
    "poison": poison,
}
