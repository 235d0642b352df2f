"""Noisy labels whose truth is known, and probabilities of a model that sees the classes through a haze."""

import numpy as np


def noisy(
    n: int = 600, num_classes: int = 5, noise: float = 0.2, sharpness: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (N, C) float64, given labels and true labels (N,); a share `noise` of labels is drawn anew."""
    rng = np.random.default_rng(seed)
    true = rng.integers(num_classes, size=n)
    given = np.where(rng.random(n) < noise, rng.integers(num_classes, size=n), true)
    logits = rng.normal(size=(n, num_classes))
    logits[np.arange(n), true] += sharpness * rng.random(n) * 2
    return softmax(logits), given, true


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
