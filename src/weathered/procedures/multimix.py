"""MultiMix: many mixtures of the embeddings of a batch in each step, for one pass through the network.

Source: Venkataramanan et al., "Embedding Space Interpolation Beyond Mini-Batch, Beyond Pairs and Beyond Examples",
NeurIPS 2023 (arXiv 2311.05538), and its first version, arXiv 2206.14868, for the distillation. For embeddings Z (b, d),
labels Y (b, C) and n tuples, each with alpha ~ U(low, high) and weights L ~ Dirichlet(alpha) on m of the b samples:
    loss = mean over tuples of loss(g(L Z), L Y) + clean_weight * loss(g(Z), Y),   g the classifier
Dense: weights of their own at each position j of the feature maps, multiplied by the attention a that sample i pays to
it and normalised over samples, M = a L / sum; the mean runs over positions as well. A network's layers between maps and
classifier, such as a normalisation, act on each mixture as on a map of one position.
Distillation: targets (1 - gamma) L Y + gamma L P, P what the moving average of the network says of the clean samples.
Limits: m = 1 with each sample once is plain training; m = 2 mixes pairs as mixup does, at the embedding; for a linear
classifier mixing embeddings is mixing logits.
With m = b, the published form, the weights are nearly uniform and learning is slow; m = 2 and n = 1000 suits short
training. The first version weights the dense losses by mixed attention; that is not built.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.roles import Output
from weathered.core.target import Target
from weathered.nn.ema import update_average
from weathered.procedures.base import check_range

if TYPE_CHECKING:
    from weathered.core.run import Run

TEACHER = "teacher"
EPS = 1e-12

Normaliser = Literal["relu", "softmax"]
"""How attention becomes positive and sums to 1 over the positions of a sample."""


def draw_weights(
    shape: tuple[int, ...], size: int, num_mixed: int, low: float, high: float, rng: torch.Generator
) -> Float[Tensor, "... size"]:
    """Weights (*shape, size) >= 0 that sum to 1, float32 on the CPU: Dirichlet(alpha) on `num_mixed` of `size` samples.

    alpha ~ U(low, high), one for each tuple; which samples are mixed is drawn without replacement, for each tuple anew.
    Raises ValueError unless 1 <= num_mixed <= size and 0 < low <= high.
    """
    check_range("num_mixed", num_mixed, 1 <= num_mixed <= size, f"[1, {size}], the size of the batch")
    if not 0 < low <= high < math.inf:
        raise ValueError(f"expected 0 < alpha_low <= alpha_high, finite, got {low} and {high}")
    alpha = low + (high - low) * torch.rand(*shape, 1, generator=rng)
    gamma = torch._standard_gamma(alpha.expand(*shape, num_mixed).contiguous(), generator=rng)  # pyright: ignore[reportPrivateImportUsage]
    weights = gamma + EPS
    weights = weights / weights.sum(-1, keepdim=True)
    if num_mixed == size:
        return weights
    chosen = torch.rand(*shape, size, generator=rng).topk(num_mixed, -1).indices
    return torch.zeros(*shape, size).scatter_(-1, chosen, weights)


def attention_of(
    maps: Float[Tensor, "B D R"], guide: Float[Tensor, "B D"], normaliser: Normaliser = "relu"
) -> Float[Tensor, "B R"]:
    """What each sample pays to its positions, without gradient: h(maps^T guide), each row summing to 1, or all 0.

    guide: the mean over positions, or a class vector. relu: negative products count nothing, and a sample without a
    positive one pays no attention at all.
    """
    products = torch.einsum("bdr,bd->br", maps.detach(), guide.detach())
    if normaliser == "softmax":
        return products.softmax(1)
    positive = products.clamp_min(0)
    total = positive.sum(1, keepdim=True)
    return positive / torch.where(total > 0, total, 1.0)


def attended(weights: Float[Tensor, "R N B"], attention: Float[Tensor, "B R"]) -> Float[Tensor, "R N B"]:
    """Weights of each position multiplied by attention and normalised over samples; unchanged where all of it is 0."""
    scaled = weights * attention.T[:, None, :]
    total = scaled.sum(-1, keepdim=True)
    return torch.where(total > 0, scaled / torch.where(total > 0, total, 1.0), weights)


class MultiMix(Procedure):
    """Train on many mixtures of the embeddings of each batch.

    num_tuples n >= 1: mixtures per step, and per position where dense. num_mixed m >= 1: samples in each, the whole
    batch by default. alpha_low, alpha_high > 0: range of the concentration. dense: mix feature maps position by
    position. attention: `relu` or `softmax` of each position's product with the sample's mean. clean_weight >= 0: of
    the loss on the unmixed batch, 0 for the published form. gamma in [0, 1]: weight of the moving average's
    predictions in the targets; momentum in [0, 1]: of that average. The network is called once, the average once more.

    Any loss and reweight acts on mixtures as on samples; one that offers no `soft` is called once for each class.
    Raises ValueError for arguments out of range, and SpecError in `setup` for more samples in a mixture than a
    device holds of a batch, or a dense form without feature maps.
    """

    traits = Traits(
        needs={"features": "mixes embeddings before the classifier", "num_classes": "mixes labels as distributions"},
        breaks={"hard_target": "trains on mixed labels", "group": "mixes samples of several groups"},
        honours=frozenset({"sampler", "transform", "loss", "reweight", "stepper"}),
    )

    def __init__(
        self,
        num_tuples: int = 1000,
        num_mixed: int | None = None,
        alpha_low: float = 0.5,
        alpha_high: float = 2.0,
        dense: bool = False,
        attention: Normaliser = "relu",
        clean_weight: float = 1.0,
        gamma: float = 0.0,
        momentum: float = 0.999,
    ):
        check_range("num_tuples", num_tuples, num_tuples >= 1, "[1, infinity)")
        if num_mixed is not None:
            check_range("num_mixed", num_mixed, num_mixed >= 1, "[1, infinity)")
        draw_weights((1,), 1, 1, alpha_low, alpha_high, torch.Generator())
        if attention not in ("relu", "softmax"):
            raise ValueError(f"attention must be 'relu' or 'softmax', got '{attention}'")
        check_range("clean_weight", clean_weight, 0 <= clean_weight < math.inf, "[0, infinity)")
        check_range("gamma", gamma, 0 <= gamma <= 1, "[0, 1]")
        check_range("momentum", momentum, 0 <= momentum <= 1, "[0, 1]")
        self.num_tuples, self.num_mixed = num_tuples, num_mixed
        self.alpha_low, self.alpha_high = alpha_low, alpha_high
        self.dense = dense
        self.attention: Normaliser = attention
        self.clean_weight, self.gamma, self.momentum = clean_weight, gamma, momentum

    def setup(self, run: Run) -> dict[str, nn.Module]:
        held = run.batch_size // run.fabric.world_size
        if self.num_mixed is not None and self.num_mixed > held:
            raise SpecError(
                f"multimix: num_mixed={self.num_mixed} samples cannot be mixed from a batch of {held} on each device; "
                "lower it or raise --batch-size."
            )
        if self.dense:
            self._check_maps(run)
        return {TEACHER: copy.deepcopy(run.model).requires_grad_(False)} if self.gamma > 0 else {}

    def _check_maps(self, run: Run) -> None:
        timm_like = cast(Any, run.model)
        with torch.no_grad(), eval_mode(run.model):
            maps = timm_like.forward_features(run.in_layout(run.train.floats(torch.arange(1)).to(run.device)))
            width = timm_like.forward_head(maps, pre_logits=True).shape[1]
            try:
                fits = maps.ndim == 4 and _embedded(run.model, _positions(maps)).shape[1] == width
            except (RuntimeError, ValueError):
                fits = False
        if not fits:
            raise SpecError(
                "multimix: the dense form mixes feature maps (B, D, h, w), whose positions the network's head takes "
                f"singly, but this network gives {tuple(maps.shape)} and a head of {width} features; leave dense out."
            )

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        timm_like = cast(Any, run.model)
        with run.autocast():
            maps = timm_like.forward_features(batch.x)
            pooled = timm_like.forward_head(maps, pre_logits=True)
        target = batch.target.dense(run.train.num_classes).to(pooled.device)
        if self.gamma > 0:
            target = (1 - self.gamma) * target + self.gamma * self._taught(run, batch.x)
        if self.dense:
            maps = maps.flatten(2).float()
            weights = self._draw(run, (maps.shape[2], self.num_tuples), len(batch)).to(maps.device)
            weights = attended(weights, attention_of(maps, maps.mean(2), self.attention))
            mixed = torch.einsum("rnb,bdr->rnd", weights, maps).flatten(0, 1)
            with run.autocast():
                mixed = _embedded(run.model, mixed)
        else:
            weights = self._draw(run, (self.num_tuples,), len(batch)).to(pooled.device)
            mixed = weights @ pooled.float()
        # rounding leaves sums of weights beside 1
        mixed_target = F.normalize(weights.flatten(0, -2) @ target, p=1, dim=1)
        total = self._mean(run, mixed, Batch.of(mixed, Target.soft(mixed_target)))
        if self.clean_weight > 0:
            total = total + self.clean_weight * self._mean(run, pooled, batch)
        return total

    def after_step(self, run: Run) -> None:
        if self.gamma > 0:
            update_average(run.modules[TEACHER], run.model, self.momentum)

    def _draw(self, run: Run, shape: tuple[int, ...], size: int) -> Tensor:
        num_mixed = size if self.num_mixed is None else self.num_mixed
        return draw_weights(shape, size, num_mixed, self.alpha_low, self.alpha_high, run.generator("multimix"))

    def _taught(self, run: Run, x: Tensor) -> Float[Tensor, "B C"]:
        # batch statistics of its own, as of an average that is run in training mode
        with torch.no_grad():
            return run.test_logits(run.forward(x, run.modules[TEACHER].train()).logits).softmax(1)

    def _mean(self, run: Run, embedding: Tensor, batch: Batch) -> Float[Tensor, ""]:
        with run.autocast():
            logits = cast(Any, run.model).get_classifier()(embedding)
        losses = run.losses(Output(logits.float(), embedding.float()), batch)
        run.check_finite(losses)
        weights = run.weights(losses, batch.target)
        return losses.mean() if weights is None else (weights * losses).mean()


def _positions(maps: Float[Tensor, "B D h w"]) -> Float[Tensor, "B*h*w D"]:
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


def _embedded(network: nn.Module, positions: Float[Tensor, "M D"]) -> Float[Tensor, "M F"]:
    """What the classifier is given of single positions: pooling has nothing to do, but heads may have other layers."""
    return cast(Any, network).forward_head(positions[:, :, None, None], pre_logits=True)
