"""Examples beside a suspected label: the nearest samples of a class whose own labels are not suspected."""

import numpy as np
import torch
from torch import Tensor

from weathered.audit.labels.neighbours import unit_rows

EXAMPLES = 4
BANK_ROWS = 20_000
"""Samples of a class that are searched at the most, evenly spread: examples need to be near, not the very nearest."""
QUERY_ROWS = 1024


def nearest_examples(
    features: Tensor | None, labels: np.ndarray, suspected: np.ndarray, classes: np.ndarray, count: int = EXAMPLES
) -> list[list[int]]:
    """For each row the `count` most similar unsuspected rows labelled `classes[row]`, nearest first.

    features (N, D): finite; None gives no examples. labels, classes (N,): in [0, C). suspected (N,) bool: only these
    rows get examples, the others an empty list. Similarity is the cosine.
    """
    found: list[list[int]] = [[] for _ in range(len(labels))]
    if features is None or not suspected.any():
        return found
    unit = unit_rows(features)
    for c in np.unique(classes[suspected]).tolist():
        bank = np.flatnonzero((labels == c) & ~suspected)
        bank = bank[:: -(-len(bank) // BANK_ROWS)] if len(bank) else bank
        queries = np.flatnonzero(suspected & (classes == c))
        if not len(bank):
            continue
        keys = unit[torch.from_numpy(bank)]
        for start in range(0, len(queries), QUERY_ROWS):
            part = queries[start : start + QUERY_ROWS]
            similar = unit[torch.from_numpy(part)] @ keys.T
            places = similar.topk(min(count, len(bank)), dim=1).indices.numpy()
            for row, near in zip(part.tolist(), bank[places].tolist(), strict=True):
                found[row] = near
    return found
