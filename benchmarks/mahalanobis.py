"""Mahalanobis scores of 500 x 512 features and 100 classes against pytorch-ood."""

import torch
from pytorch_ood.detector import Mahalanobis as Peer

from timing import Row, side_by_side
from weathered import Mahalanobis
from weathered.scores.base import Evidence

CLASSES, WIDTH, QUERIES = 100, 512, 500


def rows() -> list[Row]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(50)
    features = torch.randn(CLASSES, WIDTH, generator=rng)[labels] + torch.randn(len(labels), WIDTH, generator=rng)
    queries = torch.randn(QUERIES, WIDTH, generator=rng)
    ours = Mahalanobis().fit(features, labels)
    peer = Peer(None).fit_features(features, labels)
    evidence = Evidence(features=queries)
    # the peer does not divide the covariance by N, so its scores are ours divided by N: the order is the same
    mine, theirs = ours.score(evidence), peer.predict_features(queries)
    agreement = torch.corrcoef(torch.stack([mine.double(), theirs.double()]))[0, 1]
    assert float(agreement) > 0.999, f"the scores disagree, correlation {float(agreement):.4f}"
    return [
        side_by_side(
            "Mahalanobis scores, 500x512, 100 classes",
            "pytorch-ood",
            lambda: ours.score(evidence),
            lambda: peer.predict_features(queries),
            50.0,
            10,
        )
    ]
