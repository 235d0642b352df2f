"""Networks that make feature maps from a class prototype and noise, sized to the maps of any backbone.

A conditioner C turns the prototype p into a code, a generator D turns noise z and code into a map:

    h = D(z, C(p)),    loss = mean over entries of (h - p)^2

Maps (c, h, w): C is conv3x3 c -> c, ReLU, conv3x3 without padding c -> c/2, linear -> 2c; D takes 2c + 2c numbers as a
1x1 map through three transposed convolutions with c channels that grow it evenly to (h, w), ReLU between them. For
512x7x7 these are the widths and kernels of the source. Vectors (c,): two linear layers each, LeakyReLU 0.1 between.
Limit cases: the loss is 0 exactly if every sample equals its prototype; where D ignores z it is the error of an
autoencoder of prototypes. Nothing rewards the use of z.
Source: Lazarou et al., Tensor feature hallucination for few-shot learning, WACV 2022, and its code.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "softplus", "sigmoid", "linear"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


def class_prototypes(support: Float[Tensor, "E N K *F"]) -> Float[Tensor, "E N *F"]:
    """The mean of the K rows of each class."""
    return support.mean(2)


def reconstruction_loss(generated: Float[Tensor, "N M *F"], prototypes: Float[Tensor, "N *F"]) -> Float[Tensor, ""]:
    """Mean squared difference of M samples of each class and its prototype, over all entries."""
    return (generated - prototypes[:, None]).square().mean()


def growing_sizes(size: int, layers: int = 3) -> list[int]:
    """1 and the sizes after each of `layers` steps that grow evenly to `size`: 7 -> [1, 3, 5, 7], 4 -> [1, 2, 3, 4]."""
    return [1, *(round(1 + (size - 1) * layer / layers) for layer in range(1, layers + 1))]


class Hallucinator(nn.Module):
    """Prototypes and noise to M samples of each class.

    shape: (c, h, w) of maps or (c,) of vectors. output: the last activation. code: width of the noise, 2c.
    """

    def __init__(self, shape: tuple[int, ...], output: Activation):
        super().__init__()
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise ValueError(f"shape must be (c,) or (c, h, w) with positive sizes, got {shape}")
        if output not in ACTIVATIONS:
            raise ValueError(f"output must be one of {', '.join(ACTIVATIONS)}, got '{output}'")
        self.shape, self.code, self.activation = shape, 2 * shape[0], ACTIVATIONS[output]
        build = _map_networks if len(shape) == 3 else _vector_networks
        self.conditioner, self.from_noise, self.from_code, self.rest = build(*shape)

    def forward(self, prototypes: Float[Tensor, "*E_N_F"], noise: Float[Tensor, "*E M z"]) -> Float[Tensor, "*E_N_M_F"]:
        """Samples of each class, all classes from the same noise; leading dimensions are episodes."""
        lead, axis = noise.shape[:-2], noise.ndim - 1
        code = self.conditioner(prototypes.flatten(0, axis - 1))
        # the first layer is linear, so noise and code pass it apart: N + M rows and not N M
        by_class = self.from_code(code).unflatten(0, (*lead, -1)).unsqueeze(axis)
        by_noise = self.from_noise(noise.flatten(0, axis - 1)).unflatten(0, (*lead, -1)).unsqueeze(axis - 1)
        hidden = by_class + by_noise
        made = self.rest(hidden.flatten(0, axis))
        return self.activation(made).unflatten(0, hidden.shape[: axis + 1])


def _map_networks(c: int, h: int, w: int) -> tuple[nn.Module, ...]:
    half, code = max(c // 2, 1), 2 * c
    kernel = (min(3, h), min(3, w))
    left = (h - kernel[0] + 1) * (w - kernel[1] + 1)
    conditioner = nn.Sequential(
        nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, half, kernel), nn.Flatten(), nn.Linear(half * left, code)
    )
    rows, columns = growing_sizes(h), growing_sizes(w)
    first, second, third = [
        (rows[layer + 1] - rows[layer] + 1, columns[layer + 1] - columns[layer] + 1) for layer in range(3)
    ]
    noise_layer, code_layer = nn.ConvTranspose2d(code, c, first, bias=False), nn.ConvTranspose2d(code, c, first)
    rest = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(c, c, second), nn.ReLU(), nn.ConvTranspose2d(c, c, third))
    for layer in (*conditioner, code_layer, *rest):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    # noise and code enter one layer of twice the inputs, and are drawn as its parts
    both = nn.init.xavier_uniform_(torch.empty(2 * code, c, *first))
    for layer, part in zip((noise_layer, code_layer), both.split(code), strict=True):
        layer.weight.data.copy_(part)
    as_map = nn.Unflatten(1, (code, 1, 1))
    return conditioner, nn.Sequential(as_map, noise_layer), nn.Sequential(as_map, code_layer), rest


def _vector_networks(c: int) -> tuple[nn.Module, ...]:
    networks = (
        nn.Sequential(nn.Linear(c, c), nn.LeakyReLU(0.1), nn.Linear(c, 2 * c)),
        nn.Linear(2 * c, c, bias=False),
        nn.Linear(2 * c, c),
        nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(c, c)),
    )
    for layer in (layer for network in networks for layer in network.modules()):
        if isinstance(layer, nn.Linear):
            # 0.01 for the 512 channels of the source, and the same gain for fewer
            nn.init.normal_(layer.weight, std=0.01 * (512 / c) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return networks
