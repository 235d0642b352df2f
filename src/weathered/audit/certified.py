"""Certified audit: how far in L2 the smoothed prediction of each image cannot be changed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from weathered.audit.pieces import Piece, Pieces, duration, seconds_of
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.certify.smoothing import CertifyResult, RandomizedSmoothing, average_certified_radius, certified_accuracy
from weathered.core.errors import DataError
from weathered.core.predict import device_of, eval_mode
from weathered.core.rng import generator
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.stats import proportion_interval

SIGMA = 0.25
"""Noise of the audit where nothing is said."""

DRAWS = 1000
"""Noisy copies that certify an image by default: enough for radii up to 2.46 sigma at alpha = 0.001."""

SELECTING = 100
"""Noisy copies that choose the class of an image."""

BLOCK = 16
"""Images of a piece of the audit."""


def longest(model: nn.Module, dataset: Dataset) -> str:
    """How long the audit takes, in words, where no image is given up early, from one forward pass measured now."""
    x = dataset.floats(torch.arange(1)).expand(256, *dataset.inputs.shape).to(device_of(model))
    with torch.no_grad(), eval_mode(model):
        seconds = seconds_of(lambda: model(x)) / len(x)
    return duration(seconds * (DRAWS + SELECTING) * len(dataset))


def audit_certified(
    model: nn.Module,
    dataset: Dataset,
    sigma: float,
    seed: int,
    n: int = DRAWS,
    n0: int = SELECTING,
    alpha: float = 0.001,
    pieces: Pieces | None = None,
    watch: Progress | None = None,
) -> AuditResult:
    """Certified accuracy over L2 radius by randomized smoothing, and the average certified radius.

    dataset: images, in [0, 1]. sigma > 0: noise in the same units, best the one the model was trained with.
    n, n0, alpha: as in `RandomizedSmoothing`. pieces: where what is done is kept. watch: told how many images are done.
    Raises DataError for a table, ValueError for arguments out of range.
    Source: Cohen et al., ICML 2019.
    """
    if not dataset.is_image:
        raise DataError(f"{dataset.name}: the certified audit needs images, but the data are {dataset.kind}.")
    smoothing = RandomizedSmoothing(sigma, n0=n0, n=n, alpha=alpha, early_stop=True)
    pieces, found = pieces or Pieces(), []
    for rows in torch.arange(len(dataset)).split(BLOCK):
        if watch is not None:
            watch("certified", int(rows[0]), len(dataset))

        def certify(rows: Tensor = rows) -> Piece:
            x = dataset.floats(rows).to(device_of(model))
            # the same stream for each block: the noise of an image depends on its number
            decided = smoothing.certify(model, x, generator(seed, "certified audit"), index=rows)
            return {"labels": decided.labels.cpu(), "radii": decided.radii.cpu(), "counts": decided.counts.cpu()}

        found.append(pieces.get(f"images-{int(rows[0])}", certify))
    joined = {key: torch.cat([piece[key] for piece in found]) for key in ("labels", "radii", "counts")}
    result = CertifyResult(**joined, n=n, alpha=alpha, sigma=sigma)
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
