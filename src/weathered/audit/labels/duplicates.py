"""Duplicates, and duplicates that contradict each other: the same input, or nearly the same, under different labels.

Of two labels of one input at least one is wrong, or the input shows both classes; no model is needed to see that.
Exact duplicates are rows with the same bytes. Near duplicates are rows of features whose cosine similarity reaches a
threshold, joined into groups by single linkage: a chain of near duplicates is one group, though its ends may differ.

The threshold depends on where the features come from. Abbas et al. (SemDeDup, 2023) remove near duplicates at 1 - ε in
features of networks trained without classes, and small ε such as 0.05 keeps to close copies. A supervised classifier
places whole classes closer than that, so its features need a higher threshold. Look at pairs near it before use.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from weathered.audit.labels.neighbours import unit_rows
from weathered.core.errors import DataError

NEAR = 0.95
"""Cosine similarity from which on two rows of features are near duplicates."""

TILE_ROWS = 2048
"""Rows that are compared with as many others at a time: 16 MiB of float32 similarities."""

PENDING = 2**21
"""Pairs that are gathered before they are merged into groups: 32 MiB."""


class Duplicates(NamedTuple):
    """Groups of duplicates among N samples.

    group (N,): its number, from 0 in the order of first rows; a sample without duplicate is a group of its own.
    size (N,): samples in its group. conflict (N,): bool, whether its group holds more than one label.
    """

    group: np.ndarray
    size: np.ndarray
    conflict: np.ndarray


class NearDuplicates(NamedTuple):
    """Near duplicates among N samples.

    duplicates: the groups, where conflict means that the group holds more than one label. partner (N,): the most
    similar sample with another label if it reaches the threshold, else -1. similarity (N,): to the partner, else NaN.
    """

    duplicates: Duplicates
    partner: np.ndarray
    similarity: np.ndarray


def exact_duplicates(inputs: np.ndarray | Tensor, labels: np.ndarray | Tensor) -> Duplicates:
    """Group samples whose inputs have the same bytes, by a 128-bit hash (BLAKE2b).

    inputs (N, ...): any numbers; a memory map is read row by row. 0 and -0 differ. labels (N,): integers.
    Raises DataError if there are no samples, or not one label for each.
    """
    given = _labels(labels, len(inputs))
    if isinstance(inputs, Tensor):
        # as bytes, because not all types of a tensor have their like in numpy
        inputs = inputs.detach().cpu().contiguous().reshape(len(inputs), -1).view(torch.uint8).numpy()
    if inputs.dtype.hasobject:
        raise DataError("Inputs must be an array of numbers, got Python objects.")
    digests = b"".join(hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in inputs)
    _, group = np.unique(np.frombuffer(digests, np.dtype("V16")), return_inverse=True)
    return _grouped(group, given)


def near_duplicates(
    features: np.ndarray | Tensor, labels: np.ndarray | Tensor, threshold: float = NEAR
) -> NearDuplicates:
    """Group samples whose features have at least this cosine similarity, and find contradicting pairs.

    features (N, D): finite. labels (N,): integers. threshold in (0, 1]: see the module for how to choose it; at 1,
    rounding decides. The work grows with N^2 D; memory stays below 300 MiB besides a float32 copy of the features.
    Raises DataError if shapes or values do not fit, and ValueError if the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    unit = unit_rows(features)
    given = torch.from_numpy(_labels(labels, len(unit)))
    groups = _Groups(len(unit))
    partner, similarity = torch.full((len(unit),), -1), torch.full((len(unit),), -torch.inf)

    def improve(at: slice, best: Tensor, place: Tensor) -> None:
        better = best > similarity[at]
        similarity[at] = torch.where(better, best, similarity[at])
        partner[at] = torch.where(better, place, partner[at])

    for start in range(0, len(unit), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        for first in range(start, len(unit), TILE_ROWS):
            columns = slice(first, first + TILE_ROWS)
            similar = unit[rows] @ unit[columns].T
            near = similar >= threshold
            if first == start:
                near = near.triu(1)
            if not near.any():
                continue
            left, right = near.nonzero(as_tuple=True)
            groups.join((left + start).numpy(), (right + first).numpy())
            contradicting = similar.masked_fill(~near | (given[rows, None] == given[None, columns]), -torch.inf)
            best, place = contradicting.max(dim=1)
            improve(rows, best, place + first)
            best, place = contradicting.max(dim=0)
            improve(columns, best, place + start)
    found = partner >= 0
    return NearDuplicates(
        _grouped(groups.finish(), given.numpy()),
        partner.numpy(),
        torch.where(found, similarity, torch.nan).numpy(),
    )


class _Groups:
    """Connected components of pairs that come in portions; memory grows with N and `PENDING`, not with the pairs."""

    def __init__(self, n: int):
        self.group = np.arange(n)
        self.left = [self.group[:0]]
        self.right = [self.group[:0]]
        self.pending = 0

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        # pairs that are in one group by now say nothing new
        apart = self.group[left] != self.group[right]
        self.left.append(left[apart])
        self.right.append(right[apart])
        self.pending += len(self.left[-1])
        if self.pending > PENDING:
            self.finish()

    def finish(self) -> np.ndarray:
        left, right = self.group[np.concatenate(self.left)], self.group[np.concatenate(self.right)]
        n = len(self.group)
        pairs = sparse.coo_matrix((np.ones(len(left), bool), (left, right)), shape=(n, n))
        component = csgraph.connected_components(pairs, directed=False)[1]
        self.group, self.left, self.right, self.pending = component[self.group], [left[:0]], [right[:0]], 0
        return self.group


def _grouped(group: np.ndarray, labels: np.ndarray) -> Duplicates:
    """Groups numbered in the order of their first rows, with sizes and conflicts."""
    _, first, inverse, counts = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    differs = labels != labels[first][inverse]
    conflict = np.bincount(inverse, weights=differs) > 0
    return Duplicates(number[inverse], counts[inverse], conflict[inverse])


def _labels(labels: np.ndarray | Tensor, rows: int) -> np.ndarray:
    array = torch.as_tensor(labels).detach().cpu().numpy()
    if not rows or array.shape != (rows,) or array.dtype.kind not in "iu":
        raise DataError(f"Expected {rows or 'some'} samples with one integer label each, got labels {array.shape}.")
    return array
