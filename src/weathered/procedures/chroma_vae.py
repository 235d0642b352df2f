"""Chroma-VAE: a small block of latents is made to predict the label and takes the shortcut up; the rest classifies.

Source: Yang, Kirichenko, Goldblum and Wilson, "Chroma-VAE: Mitigating Shortcut Learning with Generative Classifiers",
NeurIPS 2022. With z = (z1, z2) drawn from the encoder's normal distribution q(z | x), and a classifier c1:
    stage 1   mean over the batch of -log p(x | z) + beta KL(q(z | x) || N(0, I))  +  lambda CE(c1(z1), y)
    stage 2   encoder and decoder stand still, c1 is put aside; a head learns y from the means of z2
Reconstruction and KL are sums over pixels and latents, in nats per image. A shortcut is cheap to encode and says all of
the label, so it moves to z1; what reconstruction needs besides stays in z2. It is shrunk there, not removed: neighbours
overlook what is small, a linear or deep head finds it again.
Limits: lambda = 0 is a beta-VAE with d1 + d2 latents and a classifier on d2 of them; d1 = 0 one with d2 latents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.attacks.base import check_unit_range
from weathered.core.batch import Batch
from weathered.core.errors import DataError, SpecError
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.rng import derive_seed
from weathered.nn.chroma_vae import ChromaNetwork, negative_log_likelihood, standard_normal_kl
from weathered.nn.latent_heads import FittedHead, HeadKind, latent_head
from weathered.procedures.base import check_range, training_features

if TYPE_CHECKING:
    from weathered.core.run import Run

FIGURES = ("reconstruction", "kl", "shortcut_loss")


def stage_one(
    network: ChromaNetwork, x: Float[Tensor, "B C H W"], labels: Int[Tensor, "B"], noise: Float[Tensor, "B latents"]
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"], Float[Tensor, "B"]]:
    """-log p(x | z), the KL divergence and CE(c1(z1), y) of each image, in nats, for z = mean + deviation * noise."""
    blocks = network.blocks
    mean, log_variance = (values.float() for values in network.posterior(x))
    z = mean + (log_variance / 2).exp() * noise
    reconstruction = negative_log_likelihood(network.decoded(z).float(), x, blocks.likelihood, blocks.sigma)
    logits = network.classify_shortcut(z[:, : blocks.d1]).float()
    return reconstruction, standard_normal_kl(mean, log_variance), F.cross_entropy(logits, labels, reduction="none")


class ChromaVAE(Procedure):
    """Train a `chroma-vae`: an autoencoder whose first block of latents predicts the label, then a head on the second.

    label_weight >= 0: lambda, in nats per image, so of the size of the reconstruction. beta >= 0: weight of the KL
    divergence; far above 1 the blocks collapse. head: knn, linear or mlp on the means of the second block; neighbours
    >= 1: of knn.

    The head is fitted on all training rows, without transforms, after the last step. Predictions before that are by a
    head that is fitted for the occasion; those of an untrained network by c1. Accuracy on data that have the shortcut
    chooses the wrong models: choose by data with known groups, or by how often c1 and the head disagree.
    Its losses are its own, so it calls neither loss, reweight nor term.
    Raises ValueError for arguments out of range, more neighbours than rows, one class alone, and for pixels outside
    [0, 1] where the likelihood is bernoulli.
    """

    traits = Traits(
        needs={
            "latent_blocks": "separates what predicts the label from the rest",
            "range01": "reconstructs pixels",
            "hard_target": "predicts each sample's one given label from the first block",
        },
        honours=frozenset({"sampler", "transform", "stepper"}),
    )

    def __init__(self, label_weight: float = 100.0, beta: float = 1.0, head: HeadKind = "knn", neighbours: int = 5):
        for name, value in (("label_weight", label_weight), ("beta", beta)):
            check_range(name, value, value >= 0 and math.isfinite(value), "[0, infinity)")
        latent_head(head, 1, 2, neighbours)
        self.label_weight, self.beta = label_weight, beta
        self.head: HeadKind = head
        self.neighbours = neighbours

    def setup(self, run: Run) -> dict[str, nn.Module]:
        if (found := int((run.train.class_counts > 0).sum())) < 2:
            raise DataError(f"{run.train.name}: a shortcut is told from a class by at least 2 classes, found {found}.")
        if self.head == "knn" and self.neighbours > len(run.train):
            raise SpecError(
                f"neighbours must be at most the {len(run.train)} training rows of {run.train.name}, got "
                f"{self.neighbours}."
            )
        _network(run).set_head(self.head, self.neighbours)
        self.sums = torch.zeros(len(FIGURES) + 1, dtype=torch.float64, device=run.device)
        return {}

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        network = _network(run)
        blocks = network.blocks
        if blocks.likelihood == "bernoulli":
            check_unit_range(batch.x, "ChromaVAE with a bernoulli likelihood")
        noise = torch.randn(
            len(batch.x), blocks.d1 + blocks.d2, generator=run.generator("chroma-vae", run.device), device=run.device
        )
        with run.autocast():
            found = stage_one(network, batch.x, batch.target.single(), noise)
        reconstruction, kl, shortcut = (losses.mean() for losses in found)
        self._record(run, reconstruction, kl, shortcut)
        total = reconstruction + self.beta * kl
        return total + self.label_weight * shortcut if self.label_weight and blocks.d1 else total

    def _record(self, run: Run, *figures: Tensor) -> None:
        if run.step % run.steps_per_epoch == 0:
            self.sums.zero_()
        self.sums += torch.stack([*figures, figures[0].new_ones(())]).detach().double()

    def after_step(self, run: Run) -> None:
        if run.step + 1 == run.total_steps and _network(run).blocks.d2:
            self._fit(run, cast(FittedHead, _network(run).head))

    def predictor(self, run: Run) -> nn.Module:
        if run.step in (0, run.total_steps) or not _network(run).blocks.d2:
            return run.model
        network = copy.deepcopy(_network(run))
        self._fit(run, cast(FittedHead, network.head))
        return network

    def _fit(self, run: Run, head: FittedHead) -> None:
        """Stage 2 on all training rows."""
        rows: Iterator[Any] = training_features(run)
        features = torch.cat([found for _, found in rows])
        head.fit(features, run.train.labels.to(features.device), derive_seed(run.seed, "chroma-vae head"))

    def metrics(self) -> dict[str, float]:
        *sums, count = self.sums.tolist()
        return {name: value / count for name, value in zip(FIGURES, sums, strict=True)} if count else {}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["sums"])


def _network(run: Run) -> ChromaNetwork:
    return cast(ChromaNetwork, run.model)
