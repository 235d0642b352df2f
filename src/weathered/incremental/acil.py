"""ACIL: a ridge classifier on frozen features, learnt class by class and identical to joint training.

Features v (n, b) of a frozen network in evaluation mode are expanded once, H = relu(v V), with a fixed random V (b, D).
For every batch, with one-hot labels Y (n, C):

    R <- R - R H^T (I + H R H^T)^-1 H R,      starting from I / gamma, so R = (gamma I + sum H^T H)^-1
    W <- W + R H^T (Y - H W)                  with the new R, starting from zeros

After any split of the data into batches and phases W equals (gamma I + sum H^T H)^-1 sum H^T Y, the ridge regression on
all data seen, so nothing is forgotten. The equality is that of the classifier given the frozen network; it says
nothing about training the network jointly. No sample is stored, yet R and W carry second-order statistics of the data.
Limit cases: gamma -> 0 with fewer rows than D is the minimum-norm interpolator, gamma -> infinity is W = H^T Y / gamma.
Plain ridge favours frequent classes.
Source: Zhuang et al., ACIL: Analytic Class-Incremental Learning with Absolute Memorization and Privacy Protection,
NeurIPS 2022, eqs. 9 and 10.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad, relu

from weathered.core.rng import generator

BLOCK = 256
"""Columns updated at once in a symmetric matrix; the part below the diagonal is copied, not computed."""


def random_expansion(features: Float[Tensor, "n b"], V: Float[Tensor, "b D"]) -> Float[Tensor, "n D"]:
    """H = relu(features V), in the precision and on the device of `V`."""
    return relu(features.to(V) @ V)


def draw_expansion(width: int, expansion: int, rng: torch.Generator) -> Float[Tensor, "b D"]:
    """A random V (width, expansion), float64, uniform in +-1/sqrt(width), as a linear layer starts."""
    bound = 1 / math.sqrt(width)
    return torch.empty(width, expansion, dtype=torch.float64, device=rng.device).uniform_(-bound, bound, generator=rng)


@dataclass
class _State:
    W: Float[Tensor, "D C"]
    R: Float[Tensor, "D D"]
    V: Float[Tensor, "b D"]
    class_counts: Int[Tensor, "C"]


class ACIL:
    """Recursive ridge classifier on a random expansion of frozen features. Zhuang et al., NeurIPS 2022.

    gamma: ridge, > 0. expansion: D, the paper's buffer size; R takes D * D numbers (0.5 GiB for 8192 in float64).
    seed: draws V. single_precision: float32 instead of float64, half the memory, but wrong by orders of magnitude
    where gamma is small and features are correlated. chunk_size: rows expanded at once, which bounds memory
    and changes results by rounding only.

    Labels are global class numbers from 0 on; classes may come back, and numbers without samples stay masked.
    Fitted state: W_ (D, C), R_ (D, D), V_ (b, D), class_counts_ (C,), on the device of the first features.
    """

    def __init__(
        self,
        gamma: float = 0.1,
        expansion: int = 8192,
        seed: int = 0,
        single_precision: bool = False,
        chunk_size: int = 1024,
    ):
        if not (gamma > 0 and math.isfinite(gamma)):
            raise ValueError(f"gamma must be > 0 and finite, got {gamma}")
        if expansion < 1 or chunk_size < 1:
            raise ValueError(f"expansion and chunk_size must be >= 1, got {expansion} and {chunk_size}")
        dtype = torch.float32 if single_precision else torch.float64
        self.gamma, self.expansion, self.seed, self.dtype, self.chunk_size = gamma, expansion, seed, dtype, chunk_size
        self._state: _State | None = None

    @property
    def W_(self) -> Float[Tensor, "D C"]:
        """Weights of the classifier, zero in the columns of classes never seen."""
        return self._fitted().W

    @property
    def R_(self) -> Float[Tensor, "D D"]:
        """(gamma I + sum H^T H)^-1 over all rows seen, symmetric and positive definite."""
        return self._fitted().R

    @property
    def V_(self) -> Float[Tensor, "b D"]:
        """The fixed random expansion."""
        return self._fitted().V

    @property
    def class_counts_(self) -> Int[Tensor, "C"]:
        """Rows seen of each class."""
        return self._fitted().class_counts

    def fit(self, features: Float[Tensor, "N b"], labels: Int[Tensor, "N"]) -> Self:
        """Forget everything and learn these rows; arguments and errors as in `partial_fit`, and at least one row."""
        _check(features, labels, None)
        if not len(labels):
            raise ValueError("fit needs at least one row, got none")
        self._state = None
        return self.partial_fit(features, labels)

    @torch.no_grad()
    def partial_fit(self, features: Float[Tensor, "N b"], labels: Int[Tensor, "N"]) -> Self:
        """Learn more rows, of old or new classes. A row given twice counts twice; no rows change nothing.

        features (N, b): finite floats of the frozen network. labels (N,): integers >= 0. Returns self.
        Raises ValueError before anything changes if features are not finite, labels are negative, or b differs from
        earlier calls; and if the features are so large for gamma that R is no longer positive definite in this
        precision, in which case the chunks before the one it names have been learnt.
        """
        _check(features, labels, None if self._state is None else self._state.V.shape[0])
        if not len(labels):
            return self
        state = self._state or self._start(features)
        labels = labels.to(state.V.device).long()
        classes = max(state.W.shape[1], int(labels.max()) + 1)
        W = pad(state.W, (0, classes - state.W.shape[1]))
        counts = pad(state.class_counts, (0, classes - len(state.class_counts)))
        state = _State(W, state.R, state.V, counts)
        if len(labels) > self.expansion:
            self._state = self._by_sums(state, features, labels)
            return self
        for start in range(0, len(labels), self.chunk_size):
            rows = slice(start, start + self.chunk_size)
            H = random_expansion(features[rows], state.V)
            _recursion(state, H, one_hot(labels[rows], classes).to(H), start)
            state.class_counts += labels[rows].bincount(minlength=classes)
            self._state = state
        return self

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "B b"]) -> Float[Tensor, "B C"]:
        """Scores (B, C), not probabilities; -inf for classes never seen.

        Raises ValueError if nothing was fitted yet, or the features are not finite or of another width.
        """
        state = self._fitted()
        _check_features(features, state.V.shape[0])
        chunks = [random_expansion(chunk, state.V) @ state.W for chunk in features.split(self.chunk_size)]
        return torch.cat(chunks).masked_fill_(state.class_counts == 0, -torch.inf)

    @torch.no_grad()
    def merge(self, other: "ACIL") -> Self:
        """Add what another learner with the same gamma and V has seen, as if its rows had been given to this one.

        With A = R^-1 = gamma I + sum H^T H and A W = sum H^T Y the sums add up: A = A1 + A2 - gamma I. `other` stays
        as it is. Returns self. Raises ValueError if gamma, dtype or V differ.
        """
        if (other.gamma, other.expansion, other.dtype) != (self.gamma, self.expansion, self.dtype):
            raise ValueError(
                "merge needs equal gamma, expansion and dtype, got "
                f"{(self.gamma, self.expansion, self.dtype)} and {(other.gamma, other.expansion, other.dtype)}"
            )
        if other._state is None:
            return self
        if self._state is None:
            self.load_state_dict(other.state_dict())
            return self
        mine, theirs = self._state, other._state
        if not torch.equal(mine.V, theirs.V.to(mine.V.device)):
            raise ValueError("merge needs the same random expansion V in both learners; give both the same seed")
        classes = max(mine.W.shape[1], theirs.W.shape[1])
        A = _inverse(mine.R)
        sums = A @ pad(mine.W, (0, classes - mine.W.shape[1]))
        A_theirs = _inverse(theirs.R.to(A))
        sums += A_theirs @ pad(theirs.W.to(A), (0, classes - theirs.W.shape[1]))
        A += A_theirs
        A.diagonal().sub_(self.gamma)
        factor = _cholesky(A, "the merged sums")
        counts = pad(mine.class_counts, (0, classes - len(mine.class_counts)))
        counts[: len(theirs.class_counts)] += theirs.class_counts.to(counts)
        R = _mirror(torch.cholesky_inverse(factor))
        self._state = _State(torch.cholesky_solve(sums, factor), R, mine.V, counts)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Copies of W, R, V and class_counts, and gamma, to which R is tied; empty before the first fit."""
        if self._state is None:
            return {}
        return {**{f.name: getattr(self._state, f.name).clone() for f in fields(_State)}, "gamma": self.gamma}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, bit for bit. Raises ValueError if it belongs to other settings."""
        if not state:
            self._state = None
            return
        names = {f.name for f in fields(_State)}
        if set(state) != {*names, "gamma"}:
            raise ValueError(f"expected the keys {sorted({*names, 'gamma'})}, got {sorted(state)}")
        loaded = _State(**{name: state[name].clone() for name in names})
        found = (state["gamma"], loaded.R.dtype, *loaded.R.shape, loaded.W.shape[0], loaded.V.shape[1])
        expected = (self.gamma, self.dtype, *(self.expansion,) * 4)
        if found != expected:
            raise ValueError(f"the state has gamma, dtype and sizes {found}, but this learner has {expected}")
        self._state = loaded

    def _fitted(self) -> _State:
        if self._state is None:
            raise ValueError("this ACIL has seen no data yet; call fit or partial_fit first")
        return self._state

    def _start(self, features: Tensor) -> _State:
        V = draw_expansion(features.shape[1], self.expansion, generator(self.seed, "acil"))
        V = V.to(device=features.device, dtype=self.dtype)
        R = torch.eye(self.expansion, dtype=V.dtype, device=V.device).div_(self.gamma)
        return _State(V.new_zeros(self.expansion, 0), R, V, torch.zeros(0, dtype=torch.int64, device=V.device))

    def _by_sums(self, state: _State, features: Tensor, labels: Tensor) -> _State:
        """The same update for more rows than D: one D x D inverse instead of one n x n system per chunk."""
        fresh = not bool(state.class_counts.any())
        A = torch.eye(self.expansion).to(state.R).mul_(self.gamma) if fresh else _inverse(state.R)
        residual = torch.zeros_like(state.W)
        for start in range(0, len(labels), self.chunk_size):
            rows = slice(start, start + self.chunk_size)
            H = random_expansion(features[rows], state.V)
            _add_gram(A, H, 1)
            residual.addmm_(H.T, one_hot(labels[rows], state.W.shape[1]).to(H).addmm_(H, state.W, alpha=-1))
        factor = _cholesky(A, "these rows")
        W = state.W + torch.cholesky_solve(residual, factor)
        counts = state.class_counts + labels.bincount(minlength=state.W.shape[1])
        return _State(W, _mirror(torch.cholesky_inverse(factor)), state.V, counts)


def _recursion(state: _State, H: Tensor, Y: Tensor, start: int) -> None:
    """Update R and W in place by the rows H (n, D) with targets Y (n, C).

    With L L^T = I + H R H^T and B = L^-1 H R the step of R is B^T B, and that of W is B^T L^-1 (Y - H W): the new R
    times H^T is the old R times H^T (L L^T)^-1, so W needs no product with a D x D matrix.
    """
    HR = H @ state.R
    S = HR @ H.T
    S.diagonal().add_(1)
    L = _cholesky(S, f"the rows from {start} on")
    error = torch.linalg.solve_triangular(L, Y.addmm_(H, state.W, alpha=-1), upper=False)
    B = torch.linalg.solve_triangular(L, HR, upper=False)
    state.W.addmm_(B.T, error)
    _add_gram(state.R, B, -1)


def _add_gram(matrix: Tensor, B: Tensor, sign: int) -> None:
    """matrix += sign * B^T B in place; computes the upper blocks and copies them, so symmetry stays exact."""
    for left in range(0, len(matrix), BLOCK):
        right = left + BLOCK
        matrix[left:right, left:].addmm_(B[:, left:right].T, B[:, left:], alpha=sign)
    _mirror(matrix)


def _mirror(matrix: Tensor) -> Tensor:
    """Copy the part above the diagonal below it, in place."""
    for left in range(0, len(matrix), BLOCK):
        right = left + BLOCK
        matrix[right:, left:right] = matrix[left:right, right:].T
        corner = matrix[left:right, left:right]
        corner.copy_(corner.triu() + corner.triu(1).T)
    return matrix


def _inverse(matrix: Tensor) -> Tensor:
    return _mirror(torch.cholesky_inverse(_cholesky(matrix, "the rows seen so far")))


def _cholesky(matrix: Tensor, rows: str) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise ValueError(
            f"after {rows} the ridge system is no longer positive definite in {matrix.dtype}; the features are too "
            "large for gamma: scale them down or raise gamma"
        )
    return factor


def _check_features(features: Tensor, width: int | None) -> None:
    if features.ndim != 2 or not features.is_floating_point() or features.shape[1] < 1:
        raise ValueError(f"features must be floats (N, b), got shape {tuple(features.shape)} of {features.dtype}")
    if width is not None and features.shape[1] != width:
        raise ValueError(f"features must have the width {width} of the first call, got {features.shape[1]}")
    broken = ~torch.isfinite(features).all(1)
    if broken.any():
        raise ValueError(f"features must be finite, row {int(broken.nonzero()[0])} is not; drop or repair such rows")


def _check(features: Tensor, labels: Tensor, width: int | None) -> None:
    _check_features(features, width)
    if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be integers of shape ({len(features)},), got shape {tuple(labels.shape)} of {labels.dtype}"
        )
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"labels must be >= 0, got {int(labels.min())} at row {int(labels.argmin())}; drop such rows")
