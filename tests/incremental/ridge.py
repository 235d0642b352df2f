"""Rows for ridge regression, and the joint solution to compare a recursive one with."""

import torch
from torch.nn.functional import one_hot

from weathered.incremental.acil import ACIL, random_expansion

WIDTH, D, CLASSES, ROWS = 12, 96, 6, 300
GAMMA = 0.1


def data(rows: int = ROWS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features, the hard case for the recursion, and labels that depend on them."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=rng, dtype=torch.float64) * torch.logspace(0, -3, WIDTH).double()
    features = torch.randn(rows, WIDTH, generator=rng, dtype=torch.float64) @ mixing.T + 1
    noise = torch.rand(rows, CLASSES, generator=rng, dtype=torch.float64)
    labels = (features @ torch.randn(WIDTH, CLASSES, generator=rng, dtype=torch.float64) + noise).argmax(1)
    labels[:CLASSES] = torch.arange(CLASSES)
    return features, labels


def joint(learner: ACIL, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    H = random_expansion(features, learner.V_)
    A = learner.gamma * torch.eye(H.shape[1], dtype=H.dtype) + H.T @ H
    return torch.linalg.solve(A, H.T @ one_hot(labels, learner.W_.shape[1]).to(H))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def learn(features: torch.Tensor, labels: torch.Tensor, cuts: list[int], **options) -> ACIL:
    learner = ACIL(**{"gamma": GAMMA, "expansion": D, "chunk_size": 64, **options})
    for rows in torch.arange(len(labels)).tensor_split(cuts):
        learner.partial_fit(features[rows], labels[rows])
    return learner
