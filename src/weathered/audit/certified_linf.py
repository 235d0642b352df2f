"""Certified audit of a network of Linf distances: how far in Linf no change of an image turns its decision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.certify.interval_bounds import IntervalBounds
from weathered.certify.linf_margin import LinfCertificate, LinfMargin
from weathered.core.errors import DataError
from weathered.core.predict import device_of
from weathered.data.dataset import Dataset
from weathered.stats import proportion_interval, sample_mean_interval

LEVELS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Radii in 255ths of the range of inputs; 8 is the usual one for CIFAR-10, and 0.1 and 0.3 for MNIST lie among them."""

MAIN = 8


def audit_certified_linf(model: nn.Module, dataset: Dataset) -> AuditResult:
    """Certified accuracy over the Linf radius, by margins and, where they do not suffice, by interval bounds.

    model: a `linf-net` at p = infinity. dataset: images, in [0, 1], with the labels that count. Nothing is drawn.
    Raises DataError for a table, Incompatible for another model or one in training.
    """
    if not dataset.is_image:
        raise DataError(f"{dataset.name}: the certified audit needs images, but the data are {dataset.kind}.")
    x, labels = dataset.floats(torch.arange(len(dataset))).to(device_of(model)), dataset.labels
    found = LinfMargin().certify(model, x)
    found = LinfCertificate(found.labels.cpu(), found.radii.cpu())
    right, n = found.labels == labels, len(labels)
    by_margin = {level: found.certifies(labels, level / 255) for level in LEVELS}
    held = _with_bounds(model, x, right, by_margin)
    shares = {level: proportion_interval(int(held[level].sum()), n) for level in LEVELS}
    main = f"certified accuracy at {MAIN}/255"
    summary = {
        main: shares[MAIN],
        "average certified radius": sample_mean_interval((right * found.radii).numpy()),
        "clean accuracy": proportion_interval(int(right.sum()), n),
    }
    radii, values = [level / 255 for level in LEVELS], list(shares.values())
    return AuditResult(
        "certified",
        summary,
        dict.fromkeys(summary, True),
        tables=(
            Table(
                "Certified accuracy by Linf radius",
                ("radius times 255", "certified accuracy", "low", "high", "by margins alone", "n"),
                tuple(
                    (level, share.value, share.low, share.high, float(by_margin[level].double().mean()), n)
                    for level, share in shares.items()
                ),
            ),
        ),
        figures=(
            Chart(
                "Certified accuracy over radius",
                "line",
                "Linf radius in [0, 1] pixel units",
                "certified accuracy",
                (
                    Series(
                        "certified accuracy",
                        radii,
                        [share.value for share in values],
                        [share.low for share in values],
                        [share.high for share in values],
                    ),
                ),
                f"Certified accuracy falls from {values[0].value:.3f} at radius 0 to {values[-1].value:.3f} at "
                f"{radii[-1]:.3f}.",
            ),
        ),
        per_sample={"certified_radius": found.radii.numpy(), "certified_label": found.labels.numpy()},
        notes=(
            "Proved, not estimated: of an image certified at a radius, no change of every value by up to that radius, "
            "within [0, 1], turns the decision, which is the right one. No attack can do better.",
            "A certificate says nothing of larger changes or other kinds, such as shifts and rotations; intervals are "
            "those of the share of images.",
        ),
    )


def _with_bounds(model: nn.Module, x: Tensor, right: Tensor, by_margin: dict[int, Tensor]) -> dict[int, Tensor]:
    """For each level which images are certified by their margins or by interval bounds."""
    held, candidates = {}, right
    for level, certified in by_margin.items():
        # what fails at one radius fails at every larger one
        rows = (candidates & ~certified).nonzero()[:, 0]
        candidates = candidates & certified
        if len(rows):
            bounds = IntervalBounds(level / 255).certify(model, x[rows.to(x.device)])
            candidates[rows] = bounds.certified.cpu()
        held[level] = candidates.clone()
    return held
