"""MixUp: blend each sample with a random partner of its batch, and their labels with the same shares.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
x~ = lam x + (1 - lam) x[partner], y~ = lam y + (1 - lam) y[partner], lam ~ Beta(alpha, alpha).
Limits: lam = 1, a batch of one, or every sample its own partner give back the batch, bit for bit; alpha -> 0 gives
one of the two samples unmixed, alpha -> infinity always their middle.
Apply it after augmentation of single images. Against heavy label noise raise alpha to 8 to 32; small networks and
weight decay above 1e-4 ask for alpha of 0.2 to 0.4. Accuracy against the own label alone says nothing here.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.roles import BatchTransform
from weathered.mixing.base import blend, check_arguments, draw_lam, draw_partner


def mixup(x: Tensor, lam: float | Float[Tensor, ""] | Float[Tensor, "B"], partner: Int[Tensor, "B"]) -> Tensor:
    """lam * x + (1 - lam) * x[partner], computed in at least float32.

    x (B, ...) of any floating type and memory layout, both kept. lam in [0, 1]: one share, or one for each sample.
    partner (B,) positions in the batch. Raises ValueError for integer inputs, shares outside [0, 1] and wrong shapes.
    """
    return blend(x, lam, partner)


class MixUp(BatchTransform):
    """Blend random pairs of a batch and their labels; the partners are a permutation of the batch.

    alpha > 0: shape of the Beta distribution of the shares. probability in [0, 1]: chance that a batch is mixed, or
    each sample under `per_sample`. per_sample: one share for each sample instead of one for the batch.
    keep_dominant: max(lam, 1 - lam), so that the own label weighs at least one half.
    Index and extra columns stay those of the own sample. Draws from a CPU generator.
    """

    traits = Traits(
        breaks={"hard_target": "turns labels into mixtures", "caption": "mixes images, but not their captions"}
    )

    def __init__(
        self, alpha: float = 1.0, probability: float = 1.0, per_sample: bool = False, keep_dominant: bool = False
    ):
        check_arguments(alpha, probability)
        self.alpha, self.probability = alpha, probability
        self.per_sample, self.keep_dominant = per_sample, keep_dominant

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        lam = draw_lam(self.alpha, self.probability, len(batch) if self.per_sample else None, rng)
        if isinstance(lam, float) and lam == 1:
            return batch
        if self.keep_dominant:
            lam = torch.maximum(lam, 1 - lam) if isinstance(lam, Tensor) else max(lam, 1 - lam)
        partner = draw_partner(len(batch), rng)
        x = mixup(batch.x, lam, partner)
        return batch.replace(x=x, target=batch.target.mix(partner.to(x.device), torch.as_tensor(lam)))
