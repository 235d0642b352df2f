"""KNN: distance of the features to their k-th nearest neighbour among the training features.

Source: Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, eq. 1.
Features are divided by their Euclidean norm; z_(k) is the k-th nearest of the bank in that form:

    s(h) = | h/|h| - z_(k) |_2,   in [0, 2], a distance and not its square

They threshold minus this, higher = in-distribution. Limits: k = 1 is the nearest neighbour, which for a training row
is that row itself, at distance 0; k = the size of the bank is the farthest. Rescaling a row changes nothing.
The search is exact: blocks of matrix products, with the k best of each block kept.
"""

import importlib.util
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from weathered.core.facts import Traits
from weathered.scores.base import Evidence, Score, check_matrix, learnt, need

Backend = Literal["torch", "faiss", "auto"]

QUERY_ROWS = 1024
"""Inputs whose similarities to a block of the bank are held at a time."""

BANK_ROWS = 16384
"""Rows of the bank in a block: 64 MiB of float32 similarities."""


def knn_score(
    features: Float[Tensor, "N D"], bank: Float[Tensor, "M D"], k: int = 50, backend: Backend = "torch"
) -> Float[Tensor, "N"]:
    """Euclidean distance of each normalised row of `features` to its k-th nearest normalised row of `bank`.

    features (N, D), bank (M, D): finite; rows of zeros stay zeros, at distance 1 from all others. k in [1, M].
    backend: `torch`; `faiss`, a flat index, which is exact too; `auto`, faiss where it is installed and else torch.
    Returns (N,) float64 in [0, 2], higher = more out-of-distribution. Neighbours are ranked in the precision of the
    bank (faiss: float32), then the distance to the k-th is taken in float64. Memory: 64 MiB at a time besides inputs.
    Raises ValueError if k is out of range, D differs, values are not finite, or faiss is asked for but missing.
    Source: Sun et al., ICML 2022, eq. 1 (they threshold minus this).
    """
    check_matrix("features", features)
    check_matrix("bank", bank)
    unit = _unit(bank)
    return _distances(features, unit, k, _index(unit, backend))


def _unit(rows: Tensor) -> Tensor:
    return normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)


def _index(bank: Tensor, backend: Backend) -> Any:
    """A flat faiss index over the bank, or None for the search in torch."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got '{backend}'")
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "torch" or (backend == "auto" and not installed):
        return None
    if not installed:
        raise ValueError("backend 'faiss' needs faiss: install weathered[ann], or use backend='torch'")
    import faiss

    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.float().cpu().numpy())  # pyright: ignore[reportCallIssue]
    return index


def _distances(features: Tensor, bank: Tensor, k: int, index: Any) -> Tensor:
    if features.shape[1] != bank.shape[1]:
        raise ValueError(f"features must have the width {bank.shape[1]} of the bank, got {features.shape[1]}")
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be in [1, {len(bank)}], the size of the bank, got {k}")
    scores = [features.new_zeros(0, dtype=torch.float64)]
    for block in features.split(QUERY_ROWS):
        unit = _unit(block).to(bank)
        if index is None:
            kth = _kth_neighbour(unit, bank, k)
        else:
            kth = torch.from_numpy(index.search(unit.float().cpu().numpy(), k)[1][:, -1]).to(bank.device)
        # from the difference: 2 - 2 cos loses half of its digits for near neighbours
        gap = _unit(block.double()).to(bank.device) - _unit(bank[kth].double())
        scores.append(gap.norm(dim=1).to(features.device))
    return torch.cat(scores)


def _kth_neighbour(unit: Tensor, bank: Tensor, k: int) -> Tensor:
    """Position (B,) in the bank of the k-th most similar row."""
    best, place = unit.new_zeros(len(unit), 0), torch.zeros(len(unit), 0, dtype=torch.int64, device=unit.device)
    for start in range(0, len(bank), BANK_ROWS):
        similar = unit @ bank[start : start + BANK_ROWS].T
        values, rows = similar.topk(min(k, similar.shape[1]), dim=1)
        best, place = torch.cat([best, values], 1), torch.cat([place, rows + start], 1)
        if best.shape[1] > k:
            best, kept = best.topk(k, dim=1)
            place = place.gather(1, kept)
    return place.gather(1, best.argmin(1, keepdim=True))[:, 0]


class KNN(Score):
    """Distance to the k-th nearest training sample on the unit sphere of features. Sun et al., ICML 2022.

    k >= 1: 50 is the paper's choice for CIFAR-10. backend: see `knn_score`. bank_ (M, D): the normalised training
    features, float32 unless they came in float64. Needs features.
    """

    fitted = ("bank_",)
    traits = Traits(needs={"features": "it measures distances between them"})

    def __init__(self, k: int = 50, backend: Backend = "torch"):
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        _index(torch.zeros(0, 1), backend)
        self.k = k
        self.backend: Backend = backend
        self.bank_: Tensor | None = None
        self._cached_index: Any = None

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"] | None = None) -> Self:
        """Keep these rows as the bank and forget others; labels are not used.

        Raises ValueError if a value is not finite or there are fewer than k rows.
        """
        check_matrix("features", features)
        if len(features) < self.k:
            raise ValueError(f"k = {self.k} needs at least as many training rows, got {len(features)}")
        self.bank_, self._cached_index = _unit(features.detach()), None
        return self

    def partial_fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"] | None = None) -> Self:
        """Add rows to the bank; their order changes nothing. Raises ValueError if values or D do not fit."""
        check_matrix("features", features)
        if self.bank_ is not None and features.shape[1] != self.bank_.shape[1]:
            raise ValueError(f"features must have the width {self.bank_.shape[1]} of the bank, got {features.shape[1]}")
        more = _unit(features.detach())
        self.bank_ = more if self.bank_ is None else torch.cat([self.bank_, more.to(self.bank_)])
        self._cached_index = None
        return self

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Distances (N,) in [0, 2], higher = more out-of-distribution; raises ValueError before `fit`."""
        features, bank = need(evidence.features, "features", self), learnt(self.bank_, self)
        check_matrix("features", features)
        if self._cached_index is None:
            self._cached_index = _index(bank, self.backend)
        return _distances(features, bank, self.k, self._cached_index)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._cached_index = None
