"""Certified audit: how far in L2 the smoothed prediction of each image cannot be changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.certify.smoothing import RandomizedSmoothing, average_certified_radius, certified_accuracy
from weathered.core.errors import DataError
from weathered.core.predict import device_of
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.stats import proportion_interval

SIGMA = 0.25
"""Noise of the audit where nothing is said."""

DRAWS = 1000
"""Noisy copies that certify an image by default: enough for radii up to 2.46 sigma at alpha = 0.001."""


def audit_certified(
    model: nn.Module, dataset: Dataset, sigma: float, seed: int, n: int = DRAWS, n0: int = 100, alpha: float = 0.001
) -> AuditResult:
    """Certified accuracy over L2 radius by randomized smoothing, and the average certified radius.

    dataset: images, in [0, 1]. sigma > 0: noise in the same units, best the one the model was trained with.
    n, n0, alpha: as in `RandomizedSmoothing`. Raises DataError for a table, ValueError for arguments out of range.
    Source: Cohen et al., ICML 2019.
    """
    if not dataset.is_image:
        raise DataError(f"{dataset.name}: the certified audit needs images, but the data are {dataset.kind}.")
    smoothing = RandomizedSmoothing(sigma, n0=n0, n=n, alpha=alpha, early_stop=True)
    x = dataset.floats(torch.arange(len(dataset))).to(device_of(model))
    result = smoothing.certify(model, x, generator(seed, "certified audit"))
    result = replace(result, labels=result.labels.cpu(), radii=result.radii.cpu(), counts=result.counts.cpu())
    radii = np.linspace(0, smoothing.radius_ceiling, 9).round(3)
    estimates = certified_accuracy(result, dataset.labels, radii.tolist())
    abstained = proportion_interval(int((result.labels == -1).sum()), len(dataset))
    curve = Series(
        "certified accuracy",
        radii.tolist(),
        [e.value for e in estimates],
        [e.low for e in estimates],
        [e.high for e in estimates],
    )
    middle = len(radii) // 4
    return AuditResult(
        "certified",
        {
            "average certified radius": average_certified_radius(result, dataset.labels),
            "certified accuracy at 0": estimates[0],
            f"certified accuracy at {radii[middle]:g}": estimates[middle],
            "abstained": abstained,
        },
        {
            "average certified radius": True,
            "certified accuracy at 0": True,
            f"certified accuracy at {radii[middle]:g}": True,
            "abstained": False,
        },
        tables=(
            Table(
                "Certified accuracy by L2 radius",
                ("radius", "certified accuracy", "low", "high", "n"),
                tuple((float(r), e.value, e.low, e.high, e.n) for r, e in zip(radii, estimates, strict=True)),
            ),
        ),
        figures=(
            Chart(
                "Certified accuracy over radius",
                "line",
                "L2 radius in [0, 1] pixel units",
                "certified accuracy",
                (curve,),
                f"Certified accuracy falls from {estimates[0].value:.3f} at radius 0 to {estimates[-1].value:.3f} at "
                f"{radii[-1]:g}.",
            ),
        ),
        per_sample={"certified_radius": result.radii.numpy(), "certified_label": result.labels.numpy()},
        notes=(
            f"Noise of deviation {sigma:g}, {n} draws: no radius above {smoothing.radius_ceiling:.3f} can be reached.",
            f"Each certificate fails with probability at most {alpha:g}; among {len(dataset)} images about "
            f"{alpha * len(dataset):.2g} may be wrong.",
            "A certificate covers changes of L2 length up to its radius and says nothing beyond it or of other kinds.",
        ),
    )
