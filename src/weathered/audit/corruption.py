"""Corruption robustness: accuracy under image corruptions, by kind and severity.

The protocol is that of Hendrycks and Dietterich (ICLR 2019): every kind at severities 1 to 5, accuracy averaged over
all. Limit case: with corruptions that change nothing, every figure equals the accuracy on clean images.

Images are streamed. Corruptions draw from generators keyed by (seed, kind, severity, block of 256 rows), so that
results depend on the seed alone and not on how many images are sent to the model at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weathered.audit.pieces import Pieces
from weathered.audit.result import AuditResult, Chart, Series, Table
from weathered.core.errors import DataError, NonFinite, SpecError
from weathered.core.rng import generator
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.stats import Estimate, proportion_interval, sample_mean_interval

BLOCK = 256
SEVERITIES = (1, 2, 3, 4, 5)

Predict = Callable[[Float[Tensor, "B channels H W"]], Float[Tensor, "B classes"]]
"""Images in [0, 1] to logits."""

Corrupt = Callable[[Tensor, str, int, torch.Generator], Tensor]
"""(x (B, C, H, W) in [0, 1], kind, severity, rng) -> corrupted x of the same shape and range."""


@torch.no_grad()
def correct_under_corruption(
    predict: Predict, dataset: Dataset, kind: str, severity: int, seed: int, chunk: int, corrupt: Corrupt
) -> np.ndarray:
    """Which rows of `dataset` are still classified right under one corruption, (N,) bool; severity 0 is clean.

    chunk: images given to `predict` at once, a multiple of 256. Raises NonFinite if a logit is not finite.
    """
    correct = []
    for rows in torch.arange(len(dataset)).split(chunk):
        blocks = [dataset.floats(block) for block in rows.split(BLOCK)]
        if severity:
            first = int(rows[0]) // BLOCK
            blocks = [
                corrupt(x, kind, severity, generator(seed, "corruption", kind, severity, first + i))
                for i, x in enumerate(blocks)
            ]
        logits = predict(torch.cat(blocks))
        if not torch.isfinite(logits).all():
            row = int(rows[0]) + int((~torch.isfinite(logits)).any(1).nonzero()[0])
            raise NonFinite(f"{dataset.name}: the logits for row {row} under {kind} {severity} are not finite.")
        correct.append((logits.argmax(1).cpu() == dataset.labels[rows].cpu()).numpy())
    return np.concatenate(correct)


def audit_corruption(
    predict: Predict,
    dataset: Dataset,
    seed: int,
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    chunk: int = 1024,
    corrupt: Corrupt | None = None,
    pieces: Pieces | None = None,
    watch: Progress | None = None,
) -> AuditResult:
    """Accuracy under corruptions of test images, by kind and severity.

    predict: images (B, C, H, W) float32 in [0, 1] -> logits (B, classes), in evaluation mode. dataset: test images
    with the labels to score against. seed: of the corruptions' draws. kinds: all of the library's by default.
    severities: 1 to 5. chunk: images sent to `predict` at once, a multiple of 256; it changes memory, not results.
    corrupt: another corruption function of the same signature, which needs `kinds`. pieces: where what is done is kept.
    watch: told how many corruptions are done.
    Memory: one chunk and one byte per image and kind. per_sample: correct (on clean images) and corrupted_accuracy,
    the share of corruptions under which the row is right.
    Raises DataError if the data are not images or empty, SpecError for unknown kinds, severities or chunks.
    """
    corrupt, kinds = _resolve(corrupt, kinds)
    severities = tuple(sorted(set(severities)))
    if not severities or not set(severities) <= set(SEVERITIES):
        raise SpecError(f"severities must be among 1 to 5, got {list(severities)}")
    if chunk < BLOCK or chunk % BLOCK:
        raise SpecError(f"chunk must be a multiple of {BLOCK}, got {chunk}")
    if not dataset.is_image or not len(dataset):
        raise DataError(f"{dataset.name}: corruptions need at least one image, got inputs of {dataset.inputs.shape}.")

    pieces, done = pieces or Pieces(), 0

    def right(kind: str, severity: int) -> np.ndarray:
        nonlocal done
        found = pieces.get(
            f"{kind}.{severity}",
            lambda: {
                "right": torch.from_numpy(
                    correct_under_corruption(predict, dataset, kind, severity, seed, chunk, corrupt)
                )
            },
        )
        if watch is not None:
            watch("corruption", done, len(kinds) * len(severities))
        done += 1
        return found["right"].numpy()

    clean = right("clean", 0)
    survived = np.zeros((len(kinds), len(dataset)), dtype=np.uint8)
    hits = np.zeros((len(kinds), len(severities)), dtype=np.int64)
    for k, kind in enumerate(kinds):
        for s, severity in enumerate(severities):
            correct = right(kind, severity)
            survived[k] += correct
            hits[k, s] = correct.sum()
    return _result(clean, survived, hits, tuple(kinds), severities)


def _resolve(corrupt: Corrupt | None, kinds: Sequence[str] | None) -> tuple[Corrupt, tuple[str, ...]]:
    if corrupt is not None:
        function, found = corrupt, tuple(dict.fromkeys(kinds or ()))
    else:
        from weathered.data import corruptions

        function, known = corruptions.corrupt, tuple(corruptions.CORRUPTIONS)
        found = known if kinds is None else tuple(dict.fromkeys(kinds))
        if unknown := [kind for kind in found if kind not in known]:
            raise SpecError(f"unknown corruption '{unknown[0]}', known are: {', '.join(known)}")
    if not found:
        raise SpecError("expected at least one kind of corruption")
    return function, found


def _result(
    clean: np.ndarray, survived: np.ndarray, hits: np.ndarray, kinds: tuple[str, ...], severities: tuple[int, ...]
) -> AuditResult:
    n, per_image = len(clean), survived.sum(0, dtype=np.int64) / (len(kinds) * len(severities))
    by_kind = [sample_mean_interval(row / len(severities)) for row in survived]
    worst = min(range(len(kinds)), key=lambda k: by_kind[k].value)
    summary = {
        "mean corruption accuracy": sample_mean_interval(per_image),
        "clean accuracy": proportion_interval(float(clean.sum()), n),
        "accuracy lost to corruption": sample_mean_interval(clean - per_image),
        "worst corruption accuracy": by_kind[worst],
    }
    matrix = Table(
        "Mean accuracy by corruption",
        ("corruption", *(f"severity {s}" for s in severities), "mean", "low", "high", "n"),
        tuple((kind, *(hits[k] / n).tolist(), *by_kind[k][:3], n) for k, kind in enumerate(kinds)),
    )
    cells = Table(
        "Accuracy by corruption and severity",
        ("corruption", "severity", "n", "accuracy", "low", "high"),
        tuple(
            (kind, severity, n, *proportion_interval(float(hits[k, s]), n)[:3])
            for k, kind in enumerate(kinds)
            for s, severity in enumerate(severities)
        ),
    )
    return AuditResult(
        audit="corruption",
        summary=summary,
        higher_is_better={name: name != "accuracy lost to corruption" for name in summary},
        tables=(matrix, cells),
        figures=(_severity_chart(summary["clean accuracy"], hits, kinds, severities, n), _kind_chart(by_kind, kinds)),
        per_sample={"correct": clean, "corrupted_accuracy": per_image},
        notes=(
            f"The worst corruption is '{kinds[worst]}'; it was picked for being lowest.",
            "The corruptions are this library's batched versions, which also fit small images. The figures are not "
            "comparable to published CIFAR-10-C or ImageNet-C figures.",
            "Intervals of means treat each image as one observation, since its corrupted versions are not independent.",
        ),
    )


def _severity_chart(
    clean: Estimate, hits: np.ndarray, kinds: tuple[str, ...], severities: tuple[int, ...], n: int
) -> Chart:
    """Accuracy over severity: the mean of all kinds and, where there are several, the best and the worst kind."""
    order = np.argsort(hits.sum(1), kind="stable")
    lines = [(kinds[0], hits[0])]
    if len(kinds) > 1:
        best, worst = int(order[-1]), int(order[0])
        lines = [
            ("mean of all kinds", hits.mean(0)),
            (f"best: {kinds[best]}", hits[best]),
            (f"worst: {kinds[worst]}", hits[worst]),
        ]
    series = []
    for name, counts in lines:
        points = [clean, *(proportion_interval(float(c), n) for c in counts)]
        series.append(
            Series(name, [0, *severities], [p.value for p in points], [p.low for p in points], [p.high for p in points])
        )
    ends = f"{clean.value:.3f} on clean images to {hits[:, -1].mean() / n:.3f} at severity {severities[-1]}"
    return Chart(
        title="Accuracy over severity",
        kind="line",
        x_label="severity (0 is clean)",
        y_label="accuracy",
        series=tuple(series),
        description=f"Mean accuracy over {len(kinds)} kinds of corruption goes from {ends}; bands are 95 % intervals.",
    )


def _kind_chart(by_kind: list[Estimate], kinds: tuple[str, ...]) -> Chart:
    order = sorted(range(len(kinds)), key=lambda k: by_kind[k].value)
    bars = [by_kind[k] for k in order]
    return Chart(
        title="Accuracy per corruption",
        kind="bar",
        x_label="corruption, worst first",
        y_label="accuracy, mean over severities",
        series=(
            Series(
                "accuracy",
                [kinds[k] for k in order],
                *([getattr(b, f) for b in bars] for f in ("value", "low", "high")),
            ),
        ),
        description=f"Accuracy with 95 % intervals, from {bars[0].value:.3f} under {kinds[order[0]]} to "
        f"{bars[-1].value:.3f} under {kinds[order[-1]]}.",
    )
