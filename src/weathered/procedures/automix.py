"""AutoMix: learn the mixing mask with a small attention block, through a moving average of the classifier.

Source: Liu et al., "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022.
q: the network with two heads, for clean and for mixed images. k: the moving average of q, frozen. M: the mix block,
whose mask S is the partner's share of each pixel. With two draws of lam ~ Beta(alpha, alpha) and of partners, m and b:
    x_m = (1 - S_m) x + S_m x[partner_m], and x_b alike without gradient; S_b = 1 - lam_b where lam_b is extreme
    loss = mixed loss of k on x_m                        trains M alone
         + loss of q on x + mixed loss of q on x_b       trains q alone
         + w max(|mean(1 - S_m) - lam_m| - eps, 0)       trains M alone
then k <- m k + (1 - m) q. k predicts, with its head for clean images. One optimizer trains q and M, weight decay
included. Parameters are averaged, batch statistics are k's own, of the clean and mixed images that it sees.
Limits: margin = 1/2 is mixup beside clean training; a mask of a binary box is CutMix.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.rng import draw_beta
from weathered.core.roles import Output
from weathered.core.target import Target
from weathered.nn.ema import cosine_momentum, update_average
from weathered.nn.mix_block import MixBlock

if TYPE_CHECKING:
    from weathered.core.run import Run

BLOCK, MIX_HEAD, AVERAGE, AVERAGE_MIX_HEAD = "mix_block", "mix_head", "average", "average_mix_head"


def mix_by_mask(
    x: Float[Tensor, "B C H W"], partner: Float[Tensor, "B C H W"], own: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B C H W"]:
    """own * x + (1 - own) * partner, pixel by pixel. own, of any shape that broadcasts, in [0, 1].

    A constant mask is mixup, a binary one pastes; both ends are exact.
    """
    return torch.lerp(partner, x, own)


def mask_area_loss(mean_own: Float[Tensor, ""], lam: float, weight: float, tolerance: float) -> Float[Tensor, ""]:
    """weight * max(|mean_own - lam| - tolerance, 0). mean_own: mean over batch and pixels together of 1 - S."""
    return weight * ((mean_own - lam).abs() - tolerance).clamp_min(0)


def stage_map(network: nn.Module, x: Tensor, stage: int) -> Float[Tensor, "B C h w"]:
    """The feature map after one stage. All stages are run, so that all batch statistics see the images."""
    return cast(Any, network).forward_intermediates(x, indices=[stage, -1], intermediates_only=True)[0]


class Pairing(NamedTuple):
    """lam: share of a sample itself. partner (B,): positions in the batch of all devices."""

    lam: float
    partner: Int[Tensor, "B"]


LONG_MOMENTUM, LONG_MOMENTUM_END = 0.999, 0.99999
"""The paper's momentum on ImageNet, for trainings of many thousand steps."""


class AutoMix(Procedure):
    """Train a classifier on images mixed by a learned mask; the moving average predicts.

    alpha > 0: of the Beta distribution of lam. momentum, momentum_end in [0, 1]: of the average, held for a tenth of
    training and then raised by a cosine. By default the average spans a sixth of training, at most the paper's 0.999,
    and only from there rises to 0.99999: an average as long as the training keeps its random start.
    stage: whose feature maps the block sees, as in forward_intermediates, the last but one by default. lam_encoding:
    show lam to the block; the authors leave it out on CIFAR, where the mask then follows lam in the mean only. margin
    in [0, 1/2]: lam that close to 0 or 1 is mixed evenly for q. mask_weight >= 0, mask_tolerance in [0, 1]: w and eps.
    reduction: of the block's channels.

    Any loss part serves all three losses. A reweight part sees clean and mixed samples as one batch of 2 B; the loss
    that trains the block is not weighted. Raises SpecError in `setup` if the model has no such stage, too few channels
    in it for `reduction`, or a classifier that cannot be drawn anew.
    """

    traits = Traits(
        needs={
            "image": "mixes pixels",
            "stage_features": "attends over feature maps",
            "features": "adds a second head on the pooled features",
            "hard_target": "mixes the one label of each sample itself",
        },
        breaks={"hard_target": "trains on mixed labels"},
        honours=frozenset({"sampler", "transform", "loss", "reweight", "stepper"}),
    )

    def __init__(
        self,
        alpha: float = 2.0,
        momentum: float | None = None,
        momentum_end: float | None = None,
        stage: int = -2,
        lam_encoding: bool = True,
        margin: float = 0.08,
        mask_weight: float = 0.1,
        mask_tolerance: float = 0.1,
        reduction: int = 2,
    ):
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha must be > 0 and finite, got {alpha}")
        first, last = momentum if momentum is not None else 0.0, momentum_end if momentum_end is not None else 1.0
        if not 0 <= first <= last <= 1:
            raise ValueError(
                f"expected 0 <= momentum <= momentum_end <= 1, got momentum {momentum} and momentum_end {momentum_end}"
            )
        if not 0 <= margin <= 0.5:
            raise ValueError(f"margin must be in [0, 0.5], got {margin}")
        if not (mask_weight >= 0 and math.isfinite(mask_weight)):
            raise ValueError(f"mask_weight must be >= 0 and finite, got {mask_weight}")
        if not 0 <= mask_tolerance <= 1:
            raise ValueError(f"mask_tolerance must be in [0, 1], got {mask_tolerance}")
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        self.alpha, self.momentum, self.momentum_end, self.stage = alpha, momentum, momentum_end, stage
        self.lam_encoding, self.margin, self.reduction = lam_encoding, margin, reduction
        self.mask_weight, self.mask_tolerance = mask_weight, mask_tolerance

    def momentum_range(self, steps: int) -> tuple[float, float]:
        """The momentum at the start and at the end of a training of `steps` steps."""
        start = min(LONG_MOMENTUM, max(0.0, 1 - 6 / steps)) if self.momentum is None else self.momentum
        end = self.momentum_end
        if end is None:
            end = max(start, LONG_MOMENTUM_END) if start >= LONG_MOMENTUM else start
        # only a start that was not given yields to the end
        return min(start, end), end

    def setup(self, run: Run) -> dict[str, nn.Module]:
        try:
            with torch.no_grad(), eval_mode(run.model):
                channels = stage_map(run.model, run.train.floats(torch.arange(1)).to(run.device), self.stage).shape[1]
        except (AssertionError, IndexError, ValueError) as error:
            raise SpecError(f"AutoMix cannot take stage {self.stage} of the model: {error}.") from error
        if self.reduction > channels:
            raise SpecError(
                f"automix: reduction must be in [1, {channels}], since stage {self.stage} has so many channels, got "
                f"{self.reduction}."
            )
        mix_head = copy.deepcopy(cast(Any, run.model).get_classifier())
        if not hasattr(mix_head, "reset_parameters"):
            raise SpecError(
                f"AutoMix cannot draw a second head, {type(mix_head).__name__} has no reset_parameters; use --head "
                "linear."
            )
        mix_head.reset_parameters()
        return {
            MIX_HEAD: mix_head,
            BLOCK: MixBlock(channels, self.reduction, self.lam_encoding).to(run.device),
            AVERAGE: copy.deepcopy(run.model).requires_grad_(False),
            AVERAGE_MIX_HEAD: copy.deepcopy(mix_head).requires_grad_(False),
        }

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        average = run.modules[AVERAGE].train()
        with torch.no_grad(), run.autocast():
            maps = stage_map(average, batch.x, self.stage)
        all_x, all_maps = run.gather(batch.x), run.gather(maps)
        all_targets = distributed.gather_target(run.fabric, batch.target)
        for_block, for_classifier = self._draw(run, len(batch)), self._draw(run, len(batch))

        def share(pair: Pairing) -> Tensor:
            size = (batch.x.shape[-2], batch.x.shape[-1])
            return 1 - run.modules[BLOCK](maps, all_maps[pair.partner], pair.lam, size)

        def mixed(pair: Pairing, own: Tensor) -> Batch:
            target = batch.target.blend(all_targets.select(pair.partner), torch.tensor(pair.lam))
            return batch.replace(x=mix_by_mask(batch.x, all_x[pair.partner], own), target=target, extra={})

        own = share(for_block)
        generated = mixed(for_block, own)
        output = two_head_output(run, average, run.modules[AVERAGE_MIX_HEAD], generated.x)
        generation = run.losses(output, generated).mean()
        mean_own = distributed.mean_over_ranks(run.fabric, own.mean())
        area = mask_area_loss(mean_own, for_block.lam, self.mask_weight, self.mask_tolerance)

        with torch.no_grad():
            even = min(for_classifier.lam, 1 - for_classifier.lam) <= self.margin
            own = batch.x.new_full((1, 1, 1, 1), for_classifier.lam) if even else share(for_classifier)
            partly = mixed(for_classifier, own)
        # twice the mean over both halves is the sum of their means
        return generation + area + 2 * run.objective(*self._both(run, batch, partly))

    def _draw(self, run: Run, size: int) -> Pairing:
        """lam and this process's part of a permutation of the batch of all devices."""
        rng = run.generator("automix", shared=True)
        lam = float(draw_beta(self.alpha, rng))
        partner = torch.randperm(size * run.fabric.world_size, generator=rng)
        return Pairing(lam, distributed.local(run.fabric, partner).to(run.device))

    def _both(self, run: Run, clean: Batch, mixed: Batch) -> tuple[Output, Batch]:
        """Clean images through one head and mixed ones through the other, as one output of one batch."""
        classifier = cast(Any, run.model).get_classifier()
        first = two_head_output(run, run.model, classifier, clean.x)
        second = two_head_output(run, run.model, run.modules[MIX_HEAD], mixed.x)
        together = Batch(
            torch.cat([clean.x, mixed.x]),
            Target.cat([clean.target, mixed.target]),
            torch.cat([clean.index, mixed.index]),
        )
        features = torch.cat([cast(Tensor, first.features), cast(Tensor, second.features)])
        return Output(torch.cat([first.logits, second.logits]), features), together

    def after_step(self, run: Run) -> None:
        # the step that was just made is not counted yet
        done = (run.step + 1) / run.total_steps
        momentum = cosine_momentum(done, *self.momentum_range(run.total_steps))
        update_average(run.modules[AVERAGE], run.model, momentum)
        update_average(run.modules[AVERAGE_MIX_HEAD], run.modules[MIX_HEAD], momentum)

    def predictor(self, run: Run) -> nn.Module:
        return run.modules[AVERAGE]


def two_head_output(run: Run, network: nn.Module, head: nn.Module, x: Tensor) -> Output:
    """Features of a network and the logits that one of its heads gives them, in float32."""
    with run.autocast():
        timm_like = cast(Any, network)
        features = timm_like.forward_head(timm_like.forward_features(x), pre_logits=True)
        return Output(head(features).float(), features.float())
