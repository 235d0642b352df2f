"""Retrieval: how often an image finds its caption among all captions of the test data, and a caption its image.

The rank of a pair is 1 plus the number of wrong candidates that lie at least as close as the closest right one, so a
model that embeds everything alike has the worst rank, not the best. Candidates are distinct captions, or all images; a
caption that several images have is right for each of them. Recall at K is the share of queries of rank K or better.
Limits: embeddings of pairs that are equal, and all others apart, give a recall of 1; random ones K over the number of
candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.audit.result import AuditResult, Chart, Series
from weathered.core.predict import eval_mode, predict_logits
from weathered.core.tokens import CAPTION
from weathered.data.dataset import Dataset
from weathered.nn.two_towers import TwoTowers
from weathered.stats import Estimate, proportion_interval

if TYPE_CHECKING:
    from weathered.core.run import Run

CUTS = (1, 5)
"""Ranks at which recall is a figure of the run."""

CURVE = (1, 2, 3, 5, 10, 20, 50, 100)
BLOCK = 512
"""Queries whose similarities are held at a time."""


def ranks(
    queries: Float[Tensor, "Q D"],
    candidates: Float[Tensor, "C D"],
    query_keys: Int[Tensor, "Q"],
    candidate_keys: Int[Tensor, "C"],
) -> Int[Tensor, "Q"]:
    """The rank of the best right candidate of each query, from 1; a candidate is right where the keys are equal.

    Raises ValueError if a query has no right candidate or an embedding is not finite.
    """
    if not (torch.isfinite(queries).all() and torch.isfinite(candidates).all()):
        raise ValueError("embeddings must be finite to be ranked")
    found = []
    for x, keys in zip(queries.split(BLOCK), query_keys.split(BLOCK), strict=True):
        closeness, right = x @ candidates.T, keys[:, None] == candidate_keys
        if not bool(right.any(1).all()):
            raise ValueError("each query needs a candidate with its key")
        best = closeness.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        found.append(((closeness >= best) & ~right).sum(1) + 1)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def recall_at(rank: Int[Tensor, "Q"], cut: int) -> Estimate:
    """Share of queries of rank `cut` or better, with its interval."""
    return proportion_interval(int((rank <= cut).sum()), len(rank))


def ranks_of_pairs(
    model: TwoTowers, dataset: Dataset, run: Run | None = None
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """The ranks of the caption of each image and of the image of each caption, both (N,), on the CPU.

    run: gives device and precision; see `predict_logits`.
    """
    images = predict_logits(model, dataset, run=run)
    distinct, keys = dataset.extra[CAPTION].unique(dim=0, return_inverse=True)
    with torch.no_grad(), eval_mode(model):
        device = model.temperature.log_scale.device
        captions = torch.cat([model.embed_captions(part.to(device)).cpu() for part in distinct.split(BLOCK)])
    return ranks(images, captions, keys, torch.arange(len(distinct))), ranks(captions[keys], images, keys, keys)


def audit_retrieval(rank_of_caption: Int[Tensor, "N"], rank_of_image: Int[Tensor, "N"]) -> AuditResult:
    """Recall at 1 and 5 in both directions, with intervals over queries; ranks as from `ranks_of_pairs`.

    Raises ValueError unless there is one rank, at least 1, in each direction for each pair.
    """
    both = {"image to text": rank_of_caption, "text to image": rank_of_image}
    if rank_of_caption.shape != rank_of_image.shape or not len(rank_of_caption):
        raise ValueError("there must be one rank in each direction for each pair, and one pair at least")
    if min(int(rank.min()) for rank in both.values()) < 1:
        raise ValueError("ranks count from 1")
    summary = {f"{name} recall at {cut}": recall_at(rank, cut) for cut in CUTS for name, rank in both.items()}
    return AuditResult(
        audit="retrieval",
        summary=summary,
        higher_is_better=dict.fromkeys(summary, True),
        figures=(_chart(both),),
        per_sample={
            "rank_of_caption": rank_of_caption.numpy(),
            "rank_of_image": rank_of_image.numpy(),
        },
        notes=(
            f"Among {len(rank_of_caption)} pairs; recall falls with their number, so compare it on the same test set.",
            "All queries share their candidates, so intervals are somewhat too narrow.",
        ),
    )


def _chart(both: dict[str, Tensor]) -> Chart:
    size = len(both["image to text"])
    cuts = [cut for cut in CURVE if cut <= size]
    lines = []
    for name, rank in both.items():
        found = [recall_at(rank, cut) for cut in cuts]
        lines.append(Series(name, cuts, [e.value for e in found], [e.low for e in found], [e.high for e in found]))
    return Chart(
        "Recall by rank", "line", "rank", "share of queries found", tuple(lines),
        f"Share of images whose caption, and of captions whose image, is among the closest K, K from 1 to {cuts[-1]}, "
        "with 95 % intervals.",
    )  # fmt: skip
