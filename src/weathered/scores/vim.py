"""ViM: a virtual logit from the part of the features that training data hardly use, against the real ones.

Source: Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022. With the last layer W h + b, the
origin o = -W^+ b and the space P of the `dim` largest eigenvectors of sum (h - o)(h - o)^T over training features,
    r(h) = |(I - P P^T)(h - o)|,   alpha = mean of max_c z_c / mean of r over training data
    s = alpha r(h) - log sum_c exp(z_c)
They score by the softmax of the virtual logit alpha r among the others, which grows with s. Limits: dim = D leaves no
residual and gives Energy at T = 1.
Sums are exact for any split of the data; the means behind alpha are over `KEPT` training rows, drawn evenly.
"""

import math
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.core.rng import generator
from weathered.scores.base import Evidence, LinearHead, Score, by_rows, check_matrix, free_energy, learnt, need

KEPT = 20_000
"""Training rows whose residuals and logits are averaged for alpha."""


def default_dim(width: int) -> int:
    """Dimensions of the principal space where none is given: 1,000 from 2,048 on, 512 from 768 on, else a half."""
    return 1000 if width >= 2048 else 512 if width >= 768 else max(width // 2, 1)


class ViM(Score):
    """Virtual-logit matching. Needs features and a linear head; learns from both. Wang et al., CVPR 2022.

    dim >= 1: of the principal space; see `default_dim`. scatter_ (D, D), origin_ (D,), weight_ (C, D), bias_ (C,) and
    kept_ (at most 20,000, D): what was learnt, in float64. seen_ and keys_: rows so far, and by what rows are kept.
    """

    fitted = ("scatter_", "origin_", "weight_", "bias_", "kept_", "keys_", "seen_")
    traits = Traits(
        needs={
            "features": "it measures what training data do not use",
            "linear_head": "its origin is where logits are 0",
        }
    )

    def __init__(self, dim: int | None = None):
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim
        self._reset()

    def _reset(self) -> None:
        self.scatter_: Tensor | None = None
        self.origin_: Tensor | None = None
        self.weight_: Tensor | None = None
        self.bias_: Tensor | None = None
        self.kept_: Tensor | None = None
        self.keys_: Tensor | None = None
        self.seen_: int = 0
        self._space: tuple[Tensor, float] | None = None

    def fit(
        self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"] | None = None, head: LinearHead | None = None
    ) -> Self:
        """Forget everything and learn these rows; arguments and errors as in `partial_fit`."""
        self._check(features, head)
        self._reset()
        return self.partial_fit(features, labels, head)

    @torch.no_grad()
    def partial_fit(
        self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"] | None = None, head: LinearHead | None = None
    ) -> Self:
        """Learn more rows. features (N, D): finite, N >= 1. head: the last layer; labels are not used.

        Raises Incompatible without a head, ValueError for values or widths that do not fit.
        """
        head = self._check(features, head)
        weight, bias = head.weight.double().cpu(), head.bias.double().cpu()
        if self.origin_ is None:
            self.weight_, self.bias_, self.origin_ = weight, bias, -torch.linalg.pinv(weight) @ bias
        elif not torch.equal(weight, learnt(self.weight_, self)) or not torch.equal(bias, learnt(self.bias_, self)):
            raise ValueError("all rows must come from one head, but this one differs from the first")
        rows = features.detach().double().cpu()
        offset = rows - learnt(self.origin_, self)
        self.scatter_ = offset.T @ offset + (0 if self.scatter_ is None else self.scatter_)
        self._keep(rows)
        self._space = None
        return self

    def _keep(self, rows: Float[Tensor, "N D"]) -> None:
        """Keep the `KEPT` rows of smallest key so far; keys are drawn, so the order of rows counts for nothing."""
        keys = torch.rand(len(rows), generator=generator(0, "vim", self.seen_), dtype=torch.float64)
        self.seen_ += len(rows)
        if self.kept_ is not None:
            rows, keys = torch.cat([self.kept_, rows]), torch.cat([learnt(self.keys_, self), keys])
        chosen = keys.topk(min(KEPT, len(keys)), largest=False).indices.sort().values
        self.kept_, self.keys_ = rows[chosen], keys[chosen]

    def fit_evidence(self, evidence: Evidence, labels: Int[Tensor, "N"]) -> Self:
        return self.fit(need(evidence.features, "features", self), labels, evidence.head)

    def _check(self, features: Tensor, head: LinearHead | None) -> LinearHead:
        head = need(head, "head", self)
        check_matrix("features", features)
        if not len(features) or features.shape[1] != head.weight.shape[1]:
            raise ValueError(
                f"features must be at least one row of the head's width {head.weight.shape[1]}, got "
                f"{tuple(features.shape)}"
            )
        if self.dim is not None and self.dim > features.shape[1]:
            raise ValueError(f"dim must be at most the width {features.shape[1]} of the features, got {self.dim}")
        return head

    def _prepared(self) -> tuple[Tensor, float]:
        """A basis (D, R) of what the principal space leaves, and alpha."""
        if self._space is None:
            scatter, kept = learnt(self.scatter_, self), learnt(self.kept_, self)
            width = len(scatter)
            rest = torch.linalg.eigh(scatter).eigenvectors[:, : width - (self.dim or default_dim(width))]
            logits = kept @ learnt(self.weight_, self).T + learnt(self.bias_, self)
            residual = float(self._residual(kept, rest).mean())
            largest = float(logits.amax(1).mean())
            # without a residual there is nothing to match
            self._space = rest, largest / residual if residual > 0 and math.isfinite(residual) else 0.0
        return self._space

    def _residual(self, features: Tensor, rest: Tensor) -> Float[Tensor, "N"]:
        return ((features.double().cpu() - learnt(self.origin_, self)) @ rest).norm(dim=1)

    @torch.no_grad()
    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,) float64 on the CPU, higher = more out-of-distribution; raises ValueError before `fit`."""
        learnt(self.scatter_, self)
        features, logits = need(evidence.features, "features", self), need(evidence.logits, "logits", self)
        check_matrix("features", features)
        rest, alpha = self._prepared()
        residual = by_rows(lambda h: self._residual(h, rest), features, width=features.shape[1])
        return alpha * residual + free_energy(logits, 1.0).cpu()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.seen_, self._space = self.seen_ or 0, None
