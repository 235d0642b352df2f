"""Contrastive training on image-caption pairs: each image is to find its caption in the batch, and vice versa.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021 (CLIP).
S = scale * f g^T with embeddings f of images and g of captions of norm 1 and a learned scale, 1/0.07 at the start and
at most 100; the loss is the mean of the cross entropies of S and S^T against the diagonal.
Limits: with one pair it is 0; with all embeddings equal it is the log of the batch size.
The text tower is a mean of word embeddings with one hidden layer, so the order of words does not count. Its vocabulary
is that of the training captions. Two rows with the same caption count as each other's negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible, SpecError
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.tokens import CAPTION, NOT_NEGATIVE, PADDING, RESERVED, UNKNOWN
from weathered.nn.two_towers import MAX_SCALE, Temperature, TextTower, TwoTowers
from weathered.procedures.base import check_range, features_of

if TYPE_CHECKING:
    from weathered.core.run import Run


def contrastive_loss(
    images: Float[Tensor, "B D"],
    captions: Float[Tensor, "B D"],
    scale: float | Float[Tensor, ""],
    not_negative: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, "B"]:
    """The mean of the losses of each image among the captions and of its caption among the images, one for each pair.

    images, captions (B, D): embeddings of pairs, of norm 1. scale > 0: factor on their cosines. not_negative (B,): a
    row that is left out of the negatives of this one in both directions, its own number for none.
    Raises ValueError for other shapes.
    """
    if images.ndim != 2 or images.shape != captions.shape:
        raise ValueError(
            f"images and captions must be embeddings (B, D) of pairs, got {tuple(images.shape)} and "
            f"{tuple(captions.shape)}"
        )
    logits = scale * images @ captions.T
    if not_negative is not None:
        logits = logits.masked_fill(_left_out(not_negative), -torch.inf)
    own = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")) / 2


def _left_out(partner: Int[Tensor, "B"]) -> Bool[Tensor, "B B"]:
    own = torch.arange(len(partner), device=partner.device)
    marks = torch.zeros(len(partner), len(partner), dtype=torch.bool, device=partner.device)
    marks[own, partner] = True
    marks |= marks.T.clone()
    marks[own, own] = False
    return marks


class Contrastive(Procedure):
    """Train an image and a text tower together; a finished run is scored by recall among the test pairs.

    dim, hidden >= 1: widths of the embeddings and of the hidden layers. temperature in [0.01, 1]: at the start.
    The model's classifier is not used. Raises ValueError for arguments out of range, SpecError for batches of
    a single pair, Incompatible for several devices.
    """

    traits = Traits(
        needs={
            "image": "embeds images",
            "caption": "learns which caption belongs to an image",
            "features": "projects the features of the image network",
        },
        honours=frozenset({"sampler", "transform", "stepper"}),
        provides=frozenset({"caption_loss"}),
    )

    def __init__(self, dim: int = 32, hidden: int = 64, temperature: float = 0.07):
        for name, width in (("dim", dim), ("hidden", hidden)):
            check_range(name, width, width >= 1, "[1, infinity)")
        check_range("temperature", temperature, 1 / MAX_SCALE <= temperature <= 1, f"[{1 / MAX_SCALE}, 1]")
        self.dim, self.hidden, self.temperature = dim, hidden, temperature

    def setup(self, run: Run) -> dict[str, nn.Module]:
        if run.fabric.world_size > 1:
            raise Incompatible(
                "Contrastive looks for negatives in the whole batch, which several devices would part. Train on one "
                "device, or remove it."
            )
        if min(run.settings.batch_size, len(run.train)) < 2:
            raise SpecError(
                f"Contrastive needs batches of at least 2 pairs, since a pair alone has no negatives, got batch_size "
                f"{run.settings.batch_size}. Raise --batch-size."
            )
        captions = run.train.extra[CAPTION]
        known = torch.zeros(len(run.train.words) + RESERVED, dtype=torch.bool)
        known[captions.unique()] = True
        known[[PADDING, UNKNOWN]] = False
        width = self._feature_width(run)
        layers = (nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.dim))
        projection, text = nn.Sequential(*layers), TextTower(known, self.hidden, self.dim)
        temperature = Temperature(self.temperature)
        self.towers = TwoTowers(run.model, projection, text, temperature)
        return {"projection": projection, "text": text, "temperature": temperature}

    def _feature_width(self, run: Run) -> int:
        one = run.train.floats(torch.zeros(1, dtype=torch.int64)).to(run.device)
        with torch.no_grad(), eval_mode(run.model):
            return features_of(run, run.model, run.in_layout(one)).shape[1]

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        towers = self.towers.train()
        with run.autocast():
            images, captions = towers(batch.x), towers.embed_captions(batch.extra[CAPTION])
        return contrastive_loss(images, captions, towers.temperature(), batch.extra.get(NOT_NEGATIVE)).mean()

    def after_step(self, run: Run) -> None:
        self.towers.temperature.clamp()

    def predictor(self, run: Run) -> TwoTowers:
        return self.towers
