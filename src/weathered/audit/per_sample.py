"""What each test sample got: prediction, confidence, loss and Brier score, in one pass of bounded memory."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_VALUES = 2**22
"""Logits that are widened to float64 at a time: 32 MiB."""


class PerSample(NamedTuple):
    """Aligned arrays (N,): predicted class, its probability, whether it is right, -log p(label), Brier score."""

    predicted: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    loss: np.ndarray
    brier: np.ndarray


def check_predictions(logits: Tensor, labels: Tensor, num_classes: int | None = None) -> None:
    """Raise ValueError unless logits are finite (N, C) with N >= 1 and labels (N,) lie in [0, C - 1]."""
    if logits.ndim != 2 or not logits.numel():
        raise ValueError(f"logits must be (N, C) with at least one sample and one class, got {tuple(logits.shape)}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"expected one label per row of logits, got {tuple(labels.shape)} for {tuple(logits.shape)}")
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(f"logits have {logits.shape[1]} columns but there are {num_classes} classes")
    outside = (labels < 0) | (labels >= logits.shape[1])
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"labels must be in [0, {logits.shape[1] - 1}] for {logits.shape[1]} logits, got {int(labels[row])} "
            f"at position {row}. If it marks 'no class is right', drop those rows first."
        )


def per_sample(logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> PerSample:
    """Prediction, confidence, correctness, cross entropy (nats) and Brier score (0 to 2) of each sample.

    logits (N, C): any finite real numbers. labels (N,): in [0, C). Probabilities are taken in float64, in chunks.
    Ties between classes go to the lowest class. The Brier score is the squared distance between the probabilities
    and the one-hot label, summed over classes (Brier, Monthly Weather Review 1950).
    Raises ValueError for shapes or labels that do not fit and for logits that are not finite, naming the row.
    """
    check_predictions(logits, labels)
    rows = max(1, CHUNK_VALUES // logits.shape[1])
    parts = []
    for start in range(0, len(logits), rows):
        z, y = logits[start : start + rows].detach().double(), labels[start : start + rows].long()
        if not torch.isfinite(z).all():
            row = start + int((~torch.isfinite(z)).any(1).nonzero()[0])
            raise ValueError(f"logits must be finite, row {row} is not")
        log_p = z.log_softmax(1)
        p = log_p.exp()
        predicted = z.argmax(1)
        own = p.gather(1, y[:, None])[:, 0]
        loss = -log_p.gather(1, y[:, None])[:, 0]
        brier = (p.square().sum(1) - own.square() + (1 - own).square()).clamp_min(0)
        parts.append((predicted, p.amax(1), predicted == y, loss, brier))
    return PerSample(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
