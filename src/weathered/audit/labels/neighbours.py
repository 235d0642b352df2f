"""The k nearest rows of a set of features within that set, by cosine similarity, in blocks and without an N x N matrix.

The search is exact: blocks of matrix products, with the k best of each block kept, or a flat faiss index. The work
grows with N^2 D in both.
"""

import importlib.util
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from weathered.core.errors import DataError, SpecError

Backend = Literal["torch", "faiss", "auto"]

QUERY_ROWS = 1024
"""Rows whose similarities to a block are held at a time."""

BANK_ROWS = 16384
"""Rows of a block: 64 MiB of float32 similarities."""


class Neighbours(NamedTuple):
    """rows (N, k): the most similar other rows, best first. similarity (N, k): their cosine similarities, float32."""

    rows: np.ndarray
    similarity: np.ndarray


def unit_rows(features: np.ndarray | Tensor) -> Tensor:
    """Rows (N, D) divided by their Euclidean norm, float32 on the CPU; rows of zeros stay zeros.

    Raises DataError if features are no matrix with N, D >= 1 or hold a value that is not finite, naming the row.
    """
    tensor = torch.as_tensor(features).detach().cpu()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise DataError(f"Features must be (N, D) with at least one row and one column, got {tuple(tensor.shape)}.")
    unit = torch.empty(tensor.shape, dtype=torch.float32)
    for start in range(0, len(tensor), BANK_ROWS):
        block = tensor[start : start + BANK_ROWS].double()
        finite = block.isfinite().all(dim=1)
        if not finite.all():
            raise DataError(f"Features must be finite, row {start + int((~finite).nonzero()[0])} is not.")
        # the largest value first, as the square of a large value would overflow
        scale = block.abs().amax(dim=1, keepdim=True)
        unit[start : start + BANK_ROWS] = normalize(block / torch.where(scale > 0, scale, 1.0), dim=1)
    return unit


def nearest_neighbours(features: np.ndarray | Tensor, k: int, backend: Backend = "torch") -> Neighbours:
    """The k rows most similar to each row, itself left out.

    features (N, D): finite. k in [1, N - 1]. backend: `torch`; `faiss`; `auto`, faiss where it is installed. Equally
    similar rows come in no particular order.
    Raises DataError if features do not fit or k is out of range, SpecError if the backend is unknown or missing.
    """
    unit = unit_rows(features)
    if not 1 <= k < len(unit):
        raise DataError(f"k must be in [1, {len(unit) - 1}], the number of other rows, got {k}.")
    if backend not in get_args(Backend):
        raise SpecError(f"backend must be one of {', '.join(get_args(Backend))}, got '{backend}'.")
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not installed:
        raise SpecError("backend 'faiss' needs faiss: install weathered[ann], or use backend='torch'.")
    if backend == "torch" or not installed:
        parts = [_among_all(unit, start, k) for start in range(0, len(unit), QUERY_ROWS)]
        return Neighbours(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return _by_faiss(unit, k)


def _among_all(unit: Tensor, start: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    queries = unit[start : start + QUERY_ROWS]
    best, place = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
    for first in range(0, len(unit), BANK_ROWS):
        similar = queries @ unit[first : first + BANK_ROWS].T
        own = torch.arange(len(queries)) + start - first
        inside = (own >= 0) & (own < similar.shape[1])
        similar[inside.nonzero()[:, 0], own[inside]] = -torch.inf
        values, rows = similar.topk(min(k, similar.shape[1]), dim=1)
        best, place = torch.cat([best, values], dim=1), torch.cat([place, rows + first], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        place = place.gather(1, kept)
    return place.numpy(), best.numpy()


def _by_faiss(unit: Tensor, k: int) -> Neighbours:
    import faiss

    array = unit.numpy()
    index = faiss.IndexFlatIP(array.shape[1])
    index.add(array)  # pyright: ignore[reportCallIssue]
    similarity, rows = index.search(array, k + 1)  # pyright: ignore[reportCallIssue]
    # the row itself goes, or the last of k + 1 where as many equals hide it
    own = rows == np.arange(len(rows))[:, None]
    own[~own.any(axis=1), -1] = True
    return Neighbours(rows[~own].reshape(-1, k), similarity[~own].reshape(-1, k))
