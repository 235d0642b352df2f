"""Backdoor audit: what a known trigger does to test images, beside what the network says of them without it.

Attack success is the share of stamped images, of other classes than the target, that are taken for the target; the same
share without the patch says what of it is no merit of the trigger. Papers often count all test images, those of the
target among them, which raises the figure by about their share.
Limits: a patch that the network ignores succeeds as often as no patch.
Source of the figures: Gu et al., "BadNets", 2017; Liu et al., "Backdoor Attacks Against Dataset Distillation", 2023.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from weathered.audit.result import AuditResult, Table
from weathered.core.errors import DataError
from weathered.data.dataset import Dataset
from weathered.data.patch import Patch
from weathered.stats import Estimate, proportion_interval

BLOCK = 512

SUCCESS = "attack success"
BASE = "target predictions without the patch"
CLEAN = "clean accuracy"
COUNTING_ALL = "attack success, counting the target class"


def predictions(predict: Callable[[Tensor], Tensor], dataset: Dataset, patch: Patch | None = None) -> Tensor:
    """The predicted classes (N,) of all images, stamped with a patch or as they are."""
    found = []
    for rows in torch.arange(len(dataset)).split(BLOCK):
        x = dataset.floats(rows)
        found.append(predict(x if patch is None else patch.stamp(x)).argmax(1).cpu())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def audit_backdoor(predict: Callable[[Tensor], Tensor], dataset: Dataset, patch: Patch, target: int) -> AuditResult:
    """Clean accuracy, attack success and its base rate on a test set.

    predict: images (B, C, H, W) in [0, 1], which an unclipped patch leaves, to logits (B, C). patch, target: the
    trigger, and the class that stamped images should be taken for. per_sample: predicted, predicted_stamped.
    Raises DataError for data that are no images, that the patch does not fit, without such a class or without images of
    other classes.
    """
    if not dataset.is_image:
        raise DataError(f"{dataset.name}: the backdoor audit needs images, but the data are {dataset.kind}.")
    if not 0 <= target < dataset.num_classes:
        raise DataError(f"{dataset.name}: target must be in [0, {dataset.num_classes - 1}], got {target}.")
    others: Bool[Tensor, "N"] = dataset.labels != target
    if not bool(others.any()):
        raise DataError(f"{dataset.name}: the backdoor audit needs a test image of another class than the target.")
    try:
        patch.check_fits(dataset.inputs.shape)
    except ValueError as error:
        raise DataError(f"{dataset.name}: {error}.") from None
    plain, stamped = predictions(predict, dataset), predictions(predict, dataset, patch)
    n, size = int(others.sum()), len(dataset)
    summary = {
        SUCCESS: proportion_interval(int((stamped[others] == target).sum()), n),
        BASE: proportion_interval(int((plain[others] == target).sum()), n),
        CLEAN: proportion_interval(int((plain == dataset.labels).sum()), size),
        COUNTING_ALL: proportion_interval(int((stamped == target).sum()), size),
    }
    return AuditResult(
        "backdoor",
        summary,
        {SUCCESS: False, BASE: False, CLEAN: True, COUNTING_ALL: False},
        tables=(_by_class(plain, stamped, dataset, target),),
        per_sample={"predicted": plain.numpy(), "predicted_stamped": stamped.numpy()},
        notes=_notes(summary, patch, dataset.class_names[target]),
    )


def _by_class(plain: Tensor, stamped: Tensor, dataset: Dataset, target: int) -> Table:
    rows = []
    for label, name in enumerate(dataset.class_names):
        own = dataset.labels == label
        if bool(own.any()):
            shares = [float((found[own] == target).double().mean()) for found in (stamped, plain)]
            rows.append((name, *shares, int(own.sum())))
    return Table(
        f"Images taken for '{dataset.class_names[target]}', by their class",
        ("class", "with the patch", "without", "n"),
        tuple(rows),
    )


def _notes(summary: dict[str, Estimate], patch: Patch, target: str) -> tuple[str, ...]:
    low, high = (float(end) for end in patch.pattern.aminmax())
    height, width = patch.pattern.shape[1:]
    outside = low < 0 or high > 1
    leaves = "It leaves [0, 1], so no image file and no object in front of a camera can hold it. " if outside else ""
    works = summary[SUCCESS].low > summary[BASE].high
    return (
        f"The trigger has {height} x {width} pixels from {low:.4g} to {high:.4g}, at row {patch.top}, column "
        f"{patch.left}. {leaves}Images stamped with it should be taken for '{target}'.",
        "With the patch more images are taken for the target than without, beyond chance."
        if works
        else "With the patch no more images are taken for the target than without, as far as these images show.",
        "Only this trigger was tried: nothing is said of others.",
    )
