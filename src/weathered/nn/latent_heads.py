"""Classifiers fitted to features that stand still, in one go: votes of neighbours, a linear one, a small network.

Each is a module with `fit(features, labels, seed)` and a forward pass to logits. What it learned lies in its buffers
and weights, so it is saved with the network that it ends. Nothing standardises the features: scale is information.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.errors import Incompatible
from weathered.core.rng import derive_seed, generator
from weathered.nn.network import seeded

HeadKind = Literal["knn", "linear", "mlp"]

CHUNK_VALUES = 2**24
"""Distances held at a time: 64 MiB."""

HIDDEN, STEPS, BATCH, RATE = 128, 2000, 256, 1e-3
"""Of the small network: hidden units, and how Adam trains it."""


class FittedHead(nn.Module):
    """Base of the heads. width: of the features, >= 0. num_classes >= 2."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.width, self.num_classes = width, num_classes

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or the state of a fitted head loaded."""
        raise NotImplementedError

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], seed: int) -> None:
        """Learn from all rows at once, forgetting what was there; gradients reach nothing outside.

        Raises ValueError for features that are not finite (N, D), labels out of range, or labels of one class alone.
        """
        self.check(features, labels)
        with torch.enable_grad():
            self._fit(features.detach().float(), labels.long(), seed)

    def check(self, features: Tensor, labels: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.width or labels.shape != features.shape[:1]:
            raise ValueError(
                f"expected features (N, {self.width}) and labels (N,), got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if len(labels.unique()) < 2:
            raise ValueError(f"a head needs samples of at least two classes, got {len(labels.unique())}")
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels must be in [0, {self.num_classes - 1}], got {low} to {high}")
        if not bool(torch.isfinite(features).all()):
            row = int((~torch.isfinite(features)).any(1).nonzero()[0])
            raise ValueError(f"features must be finite, row {row} is not; lower the learning rate")

    def _fit(self, features: Tensor, labels: Tensor, seed: int) -> None:
        raise NotImplementedError

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise Incompatible(
                "the network predicts by a head that is fitted when its training ends; train it with --use chroma-vae."
            )


class NeighbourVotes(FittedHead):
    """Votes of the k rows of smallest Euclidean distance. features (B, D) -> log((votes + 1 / C) / (k + 1)), (B, C).

    neighbours: k >= 1. Logits are finite, and their softmax is the share of votes with one more vote spread over all
    classes. Ties go to the lowest class. Votes do not change with small changes of the features, so the gradient is 0.
    Memory: the training features, and 64 MiB of distances. Raises ValueError in `fit` for fewer rows than neighbours.
    """

    features: Tensor
    labels: Tensor

    def __init__(self, width: int, num_classes: int, neighbours: int = 5):
        super().__init__(width, num_classes)
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {neighbours}")
        self.neighbours = neighbours
        self.register_buffer("features", torch.zeros(0, width))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))

    @property
    def is_fitted(self) -> bool:
        return len(self.labels) > 0

    def check(self, features: Tensor, labels: Tensor) -> None:
        super().check(features, labels)
        if len(labels) < self.neighbours:
            raise ValueError(f"neighbours must be at most the {len(labels)} training rows, got {self.neighbours}")

    def _fit(self, features: Tensor, labels: Tensor, seed: int) -> None:
        self.features, self.labels = features.clone(), labels.to(features.device).clone()

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        self._check_fitted()
        rows = max(1, CHUNK_VALUES // len(self.labels))
        votes = torch.cat([self._votes(chunk) for chunk in features.detach().float().split(rows)])
        logits = ((votes + 1 / self.num_classes) / (self.neighbours + 1)).log()
        # a gradient of 0 where one is asked for
        return logits + 0 * features.float().sum(1, keepdim=True)

    def _votes(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        # by differences, so that a row's distances do not depend on its company
        distances = torch.cdist(features, self.features, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = self.labels[distances.topk(self.neighbours, dim=1, largest=False).indices]
        votes = torch.zeros(len(features), self.num_classes, device=features.device)
        return votes.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=votes.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # as many rows as the state has
        if (features := state_dict.get(f"{prefix}features")) is not None and features.ndim == 2:
            self.features = self.features.new_zeros(len(features), self.width)
            self.labels = self.labels.new_zeros(len(features))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class TrainedHead(FittedHead):
    """Layers that are fitted by their own optimizer. features (B, D) -> logits (B, C)."""

    fitted: Tensor

    def __init__(self, width: int, num_classes: int, layers: nn.Module):
        super().__init__(width, num_classes)
        self.layers = layers.requires_grad_(False)
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def is_fitted(self) -> bool:
        return bool(self.fitted)

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], seed: int) -> None:
        super().fit(features, labels, seed)
        self.layers.requires_grad_(False)
        self.fitted.fill_(True)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        self._check_fitted()
        return self.layers(features.float())


class LogisticHead(TrainedHead):
    """Logistic regression: least mean cross entropy + |W|^2 / (2 N), found in float64; no draws."""

    def __init__(self, width: int, num_classes: int):
        super().__init__(width, num_classes, nn.Linear(width, num_classes))

    def _fit(self, features: Tensor, labels: Tensor, seed: int) -> None:
        x = features.double()
        weight = torch.zeros(self.num_classes, self.width, dtype=x.dtype, device=x.device, requires_grad=True)
        bias = torch.zeros(self.num_classes, dtype=x.dtype, device=x.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), labels) + weight.square().sum() / (2 * len(labels))
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            for parameter, found in zip(self.layers.parameters(), (weight, bias), strict=True):
                parameter.copy_(found)


class PerceptronHead(TrainedHead):
    """One hidden layer of 128 units with ReLU, trained by Adam on cross entropy for 2,000 batches of 256 rows."""

    def __init__(self, width: int, num_classes: int):
        layers = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes))
        super().__init__(width, num_classes, layers)

    def _fit(self, features: Tensor, labels: Tensor, seed: int) -> None:
        with seeded(derive_seed(seed, "head")):
            for module in self.layers.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        self.layers.requires_grad_(True)
        optimizer, rng = torch.optim.Adam(self.layers.parameters(), lr=RATE), generator(seed, "head batches")
        for _ in range(STEPS):
            rows = torch.randint(len(labels), (min(BATCH, len(labels)),), generator=rng).to(features.device)
            optimizer.zero_grad()
            F.cross_entropy(self.layers(features[rows]), labels[rows]).backward()
            optimizer.step()
        for parameter in self.layers.parameters():
            parameter.grad = None


def latent_head(kind: HeadKind, width: int, num_classes: int, neighbours: int = 5) -> FittedHead:
    """A head by name, not yet fitted. Raises ValueError for another name, or neighbours below 1."""
    if kind == "knn":
        return NeighbourVotes(width, num_classes, neighbours)
    if kind in ("linear", "mlp"):
        return (LogisticHead if kind == "linear" else PerceptronHead)(width, num_classes)
    raise ValueError(f"head must be 'knn', 'linear' or 'mlp', got '{kind}'")
