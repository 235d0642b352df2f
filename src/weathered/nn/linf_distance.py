"""A layer of distances: each unit gives how far its input lies from its weight vector, in an Lp norm.

u_j = ||x - w_j||_p = M (sum_i (|x_i - w_ji| / M)^p)^(1/p),  M = max_i |x_i - w_ji|;  p = infinity: u_j = M
du_j/dx_i = sign(x_i - w_ji) (|x_i - w_ji| / u_j)^(p-1) = -du_j/dw_ji;  p = infinity: the sign at one largest
coordinate, 0 at all others
With p = infinity a unit changes by no more than the largest change of a coordinate of x, and so does any stack of such
layers. With finite p a layer of d inputs may change by d^(1/p) times as much, which no certificate allows for.
Limits: M <= u_p <= d^(1/p) M, falling in p; p = 1 is the sum of absolute differences, p = 2 the Euclidean distance.
Source: Zhang et al., "Towards Certifying L-infinity Robustness using Neural Networks with L-inf-dist Neurons", ICML
2021; the start from copies of the inputs is that of Zhang et al., ICLR 2022.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

TILE = 2**18
"""Differences between inputs and weights that are held at once, a megabyte in float32."""

BLOCK = 64
"""Coordinates whose largest is found by vector instructions; only the best block is searched for its place."""

TINY = 1e-10
"""The distance below which an input counts as equal to a weight vector."""

COPY = -10.0
"""The first weight of a copied coordinate: far from inputs, so that its distance is the input plus a constant."""

MOMENTUM = 0.1
"""The share of a batch in the running mean."""


def lp_distance(x: Float[Tensor, "B D"], weight: Float[Tensor, "K D"], p: float = math.inf) -> Float[Tensor, "B K"]:
    """The Lp distance of each input to each weight vector, with gradients for both.

    x (B, D), weight (K, D), of one kind of float. p in [1, infinity]. Returns (B, K), >= 0. Memory grows with B K and
    never with B K D. Where several coordinates are largest, at p = infinity one of them gets the gradient.
    Raises ValueError for p below 1 or shapes that do not fit.
    """
    if not p >= 1:
        raise ValueError(f"p must be in [1, infinity], got {p}")
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or not x.shape[1]:
        raise ValueError(f"x and weight must be (B, D) and (K, D), got {tuple(x.shape)} and {tuple(weight.shape)}")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Distance.apply(x, weight, p)
    return _largest(x, weight) if p == math.inf else _finite(x, weight, p)


def distance_bounds(
    lower: Float[Tensor, "B D"], upper: Float[Tensor, "B D"], weight: Float[Tensor, "K D"]
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The least and the largest Linf distance to each weight vector over all inputs of a box.

    lower, upper (B, D): ends of the boxes, lower <= upper. weight (K, D). Both bounds are reached for each unit alone:
    equal ends give the distance itself.
    """
    least, most = (lower.new_empty(len(lower), len(weight)) for _ in range(2))
    for rows, units in _tiles(len(lower), *weight.shape):
        above, below = lower[rows, None] - weight[units], weight[units] - upper[rows, None]
        # of a coordinate: beyond the weight, short of it, or around it
        least[rows, units] = torch.maximum(above, below).amax(-1).clamp_min_(0)
        most[rows, units] = -torch.minimum(above, below).amin(-1)
    return least, most


class _Distance(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, p: float) -> Tensor:
        ctx.p = p
        if p == math.inf:
            distance, place = _largest_and_place(x, weight)
            ctx.save_for_backward(x, weight, place)
        else:
            distance = _finite(x, weight, p)
            ctx.save_for_backward(x, weight, distance)
        return distance

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        x, weight, kept = ctx.saved_tensors
        if ctx.p == math.inf:
            return *_gradients_at_one(x, weight, kept.long(), gradients[0]), None
        return *_gradients(x, weight, kept, gradients[0], ctx.p), None


def _tiles(rows: int, units: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Parts of a (rows, units) table of which each holds at most `TILE` differences, or one pair."""
    pairs = max(1, TILE // width)
    wide = min(units, pairs)
    tall = max(1, pairs // max(wide, 1))
    for top in range(0, rows, tall):
        for left in range(0, units, wide):
            yield slice(top, top + tall), slice(left, left + wide)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Numbers >= 0 to a power >= 0, in place; a logarithm and an exponential are faster than a general power."""
    if exponent == 0:
        return base.fill_(1)
    return base if exponent == 1 else base.log_().mul_(exponent).exp_()


def _finite(x: Tensor, weight: Tensor, p: float) -> Tensor:
    distance = x.new_empty(len(x), len(weight))
    for rows, units in _tiles(len(x), *weight.shape):
        apart = (x[rows, None] - weight[units]).abs_()
        most = apart.amax(-1).clamp_min_(TINY)
        total = _power(apart.div_(most[..., None]), p).sum(-1)
        distance[rows, units] = most * total.pow_(1 / p)
    return distance


def _gradients(x: Tensor, weight: Tensor, distance: Tensor, gradient: Tensor, p: float) -> tuple[Tensor, Tensor]:
    of_x, of_weight = torch.zeros_like(x), torch.zeros_like(weight)
    for rows, units in _tiles(len(x), *weight.shape):
        offset = x[rows, None] - weight[units]
        share = offset.abs().div_(distance[rows, units, None].clamp_min(TINY))
        slope = _power(share, p - 1).copysign_(offset).mul_(gradient[rows, units, None])
        of_x[rows] += slope.sum(1)
        of_weight[units] -= slope.sum(0)
    return of_x, of_weight


def _largest(x: Tensor, weight: Tensor) -> Tensor:
    distance = x.new_empty(len(x), len(weight))
    for rows, units in _tiles(len(x), *weight.shape):
        distance[rows, units] = (x[rows, None] - weight[units]).abs_().amax(-1)
    return distance


def _largest_and_place(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The largest absolute differences and the coordinates where they are, int32."""
    if (width := x.shape[1]) > BLOCK and width % BLOCK:
        # differences of 0 at the end, never the largest unless all are 0; then the first place is found
        x, weight = (F.pad(side, (0, BLOCK - width % BLOCK)) for side in (x, weight))
    size = min(x.shape[1], BLOCK)
    distance = x.new_empty(len(x), len(weight))
    place = torch.empty(len(x), len(weight), dtype=torch.int32, device=x.device)
    for rows, units in _tiles(len(x), *weight.shape):
        apart = (x[rows, None] - weight[units]).abs_().unflatten(-1, (-1, size))
        distance[rows, units], block = apart.amax(-1).max(-1)
        start = torch.arange(0, apart.shape[:3].numel(), apart.shape[2], device=x.device)
        inner = apart.flatten(0, 2).index_select(0, block.flatten() + start).argmax(-1)
        place[rows, units] = (block * size + inner.view_as(block)).to(place.dtype)
    return distance, place


def _gradients_at_one(x: Tensor, weight: Tensor, place: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    # columns of `place` are units, whose weight vectors are the rows of `weight`
    slope = (x.gather(1, place) - weight.gather(1, place.T).T).sign_().mul_(gradient)
    of_x = torch.zeros_like(x).scatter_add_(1, place, slope)
    return of_x, torch.zeros_like(weight).scatter_add_(1, place.T, -slope.T)


class LinfDistance(nn.Module):
    """A layer of `out_features` distances, centred by their mean over the batch, or with a bias instead.

    x (B, in_features) -> (B, out_features). In training the distance is that of the exponent `p`, a buffer, and its
    batch mean is subtracted; in evaluation the exponent is always infinity and the running mean is subtracted.
    mean_shift: subtract the mean; without, a bias is added. Weights start standard normal; where there are as many
    units as inputs, each unit starts as a copy of one input plus a constant.
    """

    p: Tensor
    running_mean: Tensor

    def __init__(self, in_features: int, out_features: int, mean_shift: bool = True):
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"in_features and out_features must be at least 1, got {in_features} and {out_features}")
        self.in_features, self.out_features, self.mean_shift = in_features, out_features, mean_shift
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = None if mean_shift else nn.Parameter(torch.empty(out_features))
        self.register_buffer("p", torch.tensor(math.inf))
        self.register_buffer("running_mean", torch.zeros(out_features if mean_shift else 0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the mean and the bias start at 0."""
        with torch.no_grad():
            self.weight.normal_()
            if self.in_features <= self.out_features:
                units = torch.arange(self.out_features)
                self.weight[units, units % self.in_features] = COPY
            if self.bias is not None:
                self.bias.zero_()
            self.running_mean.zero_()

    @property
    def shift(self) -> Float[Tensor, "K"]:
        """What evaluation adds to the distances."""
        return -self.running_mean if self.bias is None else self.bias

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        distance = lp_distance(x, self.weight, float(self.p) if self.training else math.inf)
        if self.bias is not None or not self.training:
            return distance + self.shift
        mean = distance.mean(0)
        self.running_mean.lerp_(mean.detach(), MOMENTUM)
        return distance - mean

    def bounds(
        self, lower: Float[Tensor, "B D"], upper: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """The least and the largest output in evaluation over all inputs of a box, unit by unit."""
        least, most = distance_bounds(lower, upper, self.weight)
        return least + self.shift, most + self.shift
