"""UniMix: mixup whose partners are drawn towards rare classes and whose shares lean towards the rarer sample.

Source: Xu et al., "Towards Calibrated Model for Long-Tailed Visual Recognition from Prior Perspective", NeurIPS 2021,
in the form of the authors' released code. With n_i the count of the class of sample i:
partner j drawn from the batch with replacement, P(j) ~ n_j^tau;   r = n_j / (n_i + n_j);   t ~ Beta(alpha, alpha);
lam = r + t, less 1 where above 1;   x~ = lam x_i + (1 - lam) x_j,   y~ = lam y_i + (1 - lam) y_j.
In large batches the class of a partner is k with probability ~ n_k^(1 + tau): tau = 0 is natural, -1 uniform.
Limits: alpha -> 0 gives lam = r; alpha = 1 gives uniform shares whatever r; between them the density peaks at r, above
1 it is lowest there. Counts move this peak and hardly the mean: at alpha = 0.8 it lies between 0.46 and 0.54.
Equal counts give uniform partners and lam = (1/2 + t) mod 1. alpha = 1 and tau = 0 are mixup with one share for each
sample, but partners are drawn with replacement instead of by a permutation.
The released code can stop mixing at an epoch, by default never; transforms do not see the progress of training, so
that option is left out. Apply it after augmentation of single images.
"""

import math
import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.rng import draw_beta
from weathered.core.roles import BatchTransform
from weathered.mixing.base import blend, check_arguments
from weathered.weighting.base import ClassCounts, check_class_counts, check_labels


def partner_probabilities(counts: Float[Tensor, "B"], tau: float) -> Float[Tensor, "B"]:
    """How likely each sample of the batch is drawn as a partner: proportional to counts^tau, sums to 1.

    counts (B,) > 0, B >= 1: training samples of the class of each sample. tau <= 0: 0 gives 1 / B each.
    """
    # relative to the rarest in the batch no power overflows, and multiplied counts give the same bits
    relative = (counts / counts.min()) ** tau
    return relative / relative.sum()


def rarity_ratio(own: Float[Tensor, "B"], other: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """other / (own + other) in [0, 1]: large where the own class is the rarer one, 1/2 where both are equal.

    own, other (B,) > 0: training samples of the class of each sample and of that of its partner.
    """
    return other / (own + other)


def wrapped_share(ratio: Float[Tensor, "B"], beta: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """ratio + beta, less 1 where above 1: the share of the own sample, in [0, 1]. ratio, beta (B,) in [0, 1]."""
    total = ratio + beta
    return torch.where(total > 1, total - 1, total)


class UniMix(BatchTransform):
    """Blend each sample with a partner of the batch, by preference of a rare class, and their labels alike.

    class_counts (C,): training samples of each class, all positive. alpha > 0: shape of the Beta distribution of the
    shares; in (0, 1) they lean towards the rarer sample, at 1 they do not, above 1 they shun the ratio of the counts.
    tau <= 0: exponent of the counts with which partners are drawn; the authors take -0.5 for CIFAR-10 and -0.1, almost
    natural, for CIFAR-100.
    A class that is missing from a batch cannot be drawn, and a sample alone is its own partner, with a warning. Needs
    one label for each sample. Index and extra columns stay those of the own sample. Draws from a CPU generator.
    Raises ValueError for a label outside the counts, or for integer inputs. Source: Xu et al., NeurIPS 2021.
    """

    traits = Traits(
        needs={
            "class_counts": "partners and shares come from the counts",
            "hard_target": "reads the count of each sample's one given label",
        },
        breaks={"hard_target": "turns labels into mixtures", "caption": "mixes images, but not their captions"},
    )

    def __init__(self, class_counts: ClassCounts, alpha: float = 0.8, tau: float = -0.5):
        check_arguments(alpha, probability=1.0)
        if not (tau <= 0 and math.isfinite(tau)):
            raise ValueError(f"tau must be <= 0 and finite, got {tau}; above 0 partners would be of frequent classes")
        self.counts, self.alpha, self.tau = check_class_counts(class_counts).cpu(), alpha, tau

    def draw(self, labels: Int[Tensor, "B"], rng: torch.Generator) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        """A partner and the share of the own sample in [0, 1], float64, for each of B >= 1 labels; both on the CPU."""
        check_labels(labels, len(self.counts))
        counts = self.counts[labels.cpu()]
        partner = torch.multinomial(partner_probabilities(counts, self.tau), len(labels), True, generator=rng)
        beta = draw_beta(self.alpha, rng, (len(labels),))
        return partner, wrapped_share(rarity_ratio(counts, counts[partner]), beta)

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        labels = batch.target.single()
        if not len(labels):
            return batch
        if len(labels) == 1:
            warnings.warn(
                "a batch of one sample has no partner to be mixed with, so UniMix does nothing; raise the batch size",
                stacklevel=3,
            )
        partner, lam = self.draw(labels, rng)
        x = blend(batch.x, lam, partner)
        return batch.replace(x=x, target=batch.target.mix(partner.to(x.device), lam))
