"""Drawing rows by weight, with replacement, for samplers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MANY = 2**17
"""Above this many weights torch's own draws take several times as long, and above 2**24 it refuses."""


def weighted_rows(weights: Float[Tensor, "N"], size: int, rng: torch.Generator) -> Int[Tensor, "M"]:
    """`size` positions (M,) int64 drawn independently with probabilities in proportion to the weights.

    weights (N,): >= 0, finite, not all 0. rng: on the CPU. Raises ValueError for other weights.
    """
    wide = weights.double()
    total = float(wide.sum())
    if not (wide.ndim == 1 and total > 0 and total < float("inf") and bool((wide >= 0).all())):
        raise ValueError("weights to draw by must be (N,), >= 0, finite and not all 0")
    if len(wide) <= MANY:
        return torch.multinomial(wide, size, replacement=True, generator=rng)
    ends = wide.cumsum(0)
    # sums of exponential draws over their total are uniform draws in order, and look-ups in order are fast
    sums = torch.rand(size + 1, dtype=torch.float64, generator=rng).neg_().log1p_().neg_().cumsum(0)
    points = sums[:-1].mul_(ends[-1] / sums[-1]).clamp_max_(torch.nextafter(ends[-1], ends.new_zeros(())))
    rows = torch.searchsorted(ends, points, right=True, out_int32=len(wide) < 2**31)
    order = torch.randperm(size, generator=rng, dtype=torch.int32 if size < 2**31 else torch.int64)
    # NumPy, as torch takes no short positions
    return torch.from_numpy(rows.numpy()[order.numpy()]).long()
