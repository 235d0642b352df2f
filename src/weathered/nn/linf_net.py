"""linf-net: a network of Linf distances, whose logits change by no more than its normalised input does."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.core.errors import Incompatible, SpecError
from weathered.core.facts import name_of
from weathered.data.dataset import Dataset
from weathered.nn.linf_distance import LinfDistance
from weathered.nn.network import Network, input_statistics
from weathered.nn.rows import RowNetwork


class LinfNet(RowNetwork):
    """`depth` - 1 hidden layers of `width` distances, centred. x (B, ...) is flattened; features (B, width).

    depth >= 2 counts the last layer too, which is the head.
    """

    def __init__(self, input_shape: tuple[int, ...], width: int = 256, depth: int = 3):
        if width < 1 or depth < 2:
            raise ValueError(f"width must be at least 1 and depth at least 2, got {width} and {depth}")
        sizes = [math.prod(input_shape), *[width] * (depth - 1)]
        super().__init__(nn.Sequential(nn.Flatten(), *(LinfDistance(*pair) for pair in pairwise(sizes))), width)


class LinfHead(LinfDistance):
    """The last layer: minus the distance to one vector per class, with a bias. features (B, D) -> logits (B, C)."""

    def __init__(self, in_features: int, num_classes: int):
        super().__init__(in_features, num_classes, mean_shift=False)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return -super().forward(x)

    def bounds(
        self, lower: Float[Tensor, "B D"], upper: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        least, most = super().bounds(lower, upper)
        return -most, -least


class LinfNetwork(Network):
    """A network all of whose layers are Linf distances; images (B, C, H, W) in [0, 1] -> logits (B, C).

    mean (C,): of each channel. std (1,): one number, because a box of one size must stay one in all channels. In
    evaluation |o_k(x) - o_k(x')| <= ||x - x'||_inf / std for every logit, trained or not.
    """

    def __init__(self, body: LinfNet, head: LinfHead, mean: Tensor, std: Tensor):
        if std.numel() != 1:
            raise ValueError(f"std must be one number, got {std.numel()}; the guarantee needs one scale for all inputs")
        super().__init__(body, head, mean, std)

    @property
    def distance_layers(self) -> list[LinfDistance]:
        """All layers, the head last."""
        return [module for module in self.modules() if isinstance(module, LinfDistance)]

    @property
    def scale(self) -> float:
        """What inputs are divided by, so that a length in [0, 1] units divided by it is one in units of the logits."""
        return float(self.std)

    @property
    def exponent(self) -> float:
        """The p of all layers in training, the least where they differ. Setting it below 1 raises ValueError."""
        return min(float(layer.p) for layer in self.distance_layers)

    @exponent.setter
    def exponent(self, p: float) -> None:
        if not p >= 1:
            raise ValueError(f"p must be in [1, infinity], got {p}")
        for layer in self.distance_layers:
            layer.p.fill_(p)

    @property
    def rounding(self) -> float:
        """What float32 may change at most in a logit of an image in [0, 1], the error of all layers added up."""
        unit = torch.finfo(torch.float32).eps / 2
        size = float(self.normalize(torch.stack([torch.zeros_like(self.mean), torch.ones_like(self.mean)])).abs().max())
        # a difference and a quotient, then a difference and a shift in each layer
        error = 2 * unit * (size + 1 / self.scale)
        for layer in self.distance_layers:
            apart = size + float(layer.weight.detach().abs().max())
            size = apart + float(layer.shift.detach().abs().max())
            error += unit * (apart + size)
        return error

    def bounds(self, lower: Tensor, upper: Tensor) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
        """The least and the largest logits over all images of a box; bounds that hold, not the tightest.

        lower, upper (B, C, H, W): ends of the boxes, as images.
        """
        lower, upper = (self.normalize(end).flatten(1) for end in (lower, upper))
        for layer in self.distance_layers:
            lower, upper = layer.bounds(lower, upper)
        return lower, upper


def linf_network(body: LinfNet, dataset: Dataset, head: str) -> LinfNetwork:
    """Hidden layers with their head and the statistics of the data: a mean of each channel, one deviation of all.

    Raises SpecError for a head of another kind than `linear`, whose place the layer of distances takes.
    """
    if head != "linear":
        raise SpecError(
            f"linf-net ends in a layer of distances and takes no {head} head, which would undo what it guarantees. "
            "Drop one: what needs that head, or the model."
        )
    mean, std = input_statistics(dataset)
    last = LinfHead(body.num_features, dataset.num_classes)
    # constant channels, which are given the deviation 1, do not count: values in [0, 1] have at most 1/2
    varying = std[std < 1] if bool((std < 1).any()) else std
    return LinfNetwork(body, last, mean, varying.square().mean().sqrt()[None])


def check_certifiable(model: nn.Module) -> LinfNetwork:
    """The network, if its margins prove something. Raises Incompatible for another one, or a finite exponent."""
    if not isinstance(model, LinfNetwork):
        raise Incompatible(
            f"only a network of Linf distances is certified by its margins, not {name_of(model)}; train with --model "
            "linf-net --use linf-distance-net."
        )
    if model.exponent < math.inf:
        raise Incompatible(
            f"the network is in training at p = {model.exponent:.4g}, and only p = infinity is certified: at a finite "
            "p a small change may move logits far. Train to the end, or set its exponent to infinity."
        )
    return model
