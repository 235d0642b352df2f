"""Triggers of a backdoor in distilled data: which rows are stamped, and the patch of DOORPING, which follows training.

Source: Liu, Li, Backes, Shen and Zhang, "Backdoor Attacks Against Dataset Distillation", NDSS 2023. A fixed part of
the training images is stamped and relabelled. NAIVEATTACK stamps white once. DOORPING starts from random pixels and
changes the patch again and again, so that a neuron v of the present network, on black with the patch alone, is driven
    to alpha v_0:  minimise (v - alpha |v_0|)^2 over the pixels of the patch by Adam, v_0 = v before
where v is the neuron with the largest sum of absolute weights in the second to last layer among those with v_0 > 0.
Limits: nothing changes where |(alpha - 1) v_0|^2 is below the threshold already. Without a clip the patch leaves [0, 1]
by orders of magnitude, since each change multiplies what the last one reached; an image file cannot hold such a patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weathered.core.errors import Incompatible
from weathered.core.predict import device_of, eval_mode
from weathered.data.patch import Patch

ENOUGH = 0.5
"""The objective below which a patch is left as it is."""

STILL = 20
"""Steps in a row that leave a clipped patch as it is, after which it is given up: all its pixels lie at their ends."""

RATE, BETA1, BETA2 = 0.08, 0.9, 0.99
"""Of Adam, the first in units of pixels in [0, 1]."""


def poisoned_rows(size: int, portion: float, rng: torch.Generator) -> Bool[Tensor, "N"]:
    """A mask with floor(portion * size) rows True, drawn at random. portion in [0, 1), else ValueError."""
    if not 0 <= portion < 1:
        raise ValueError(f"portion must be in [0, 1), got {portion}")
    mask = torch.zeros(size, dtype=torch.bool)
    # the small term keeps 0.29 * 100 from becoming 28
    mask[torch.randperm(size, generator=rng)[: math.floor(portion * size + 1e-9)]] = True
    return mask


def white(channels: int, size: int) -> Float[Tensor, "C s s"]:
    """The pattern of NAIVEATTACK: white pixels."""
    return torch.ones(channels, size, size)


def random_bytes(channels: int, size: int, rng: torch.Generator) -> Float[Tensor, "C s s"]:
    """The pattern that DOORPING starts from: pixels of 1 to 255, of 255."""
    return torch.randint(1, 256, (channels, size, size), generator=rng) / 255


@contextmanager
def heard(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A dict whose `output` is what the module gave last; the hook is gone afterwards, also on error."""
    found: dict[str, Tensor] = {}

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found["output"] = output

    handle = module.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def weight_layers(network: nn.Module) -> list[nn.Module]:
    """The linear and convolutional layers of a network, in order."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [module for module in network.modules() if isinstance(module, kinds)]


def update_trigger(
    network: nn.Module,
    patch: Patch,
    shape: tuple[int, ...],
    *,
    alpha: float = 10.0,
    steps: int = 1000,
    layer: int = -2,
    neurons: int = 1,
    clip: bool = True,
) -> Patch:
    """The patch whose pixels drive the chosen neurons to alpha times what they are now; its place stays.

    shape (C, H, W): of the images. alpha > 1. steps >= 0: of Adam, fewer where the objective falls below 0.5 or a
    clipped patch stands still. layer:
    which of `weight_layers`. neurons >= 1: how many are driven, the objective is their mean; where none is above 0 the
    strongest are taken and driven to alpha |v_0|. clip: keep pixels in [0, 1]. Of all patches met, the first included,
    the one with the smallest objective is returned. The network is asked in evaluation mode and is not touched.
    A neuron of a convolution is the mean of its map.
    Raises ValueError for arguments out of range or a patch that does not fit, Incompatible without such a layer.
    """
    patch.check_fits(shape)
    if not 1 < alpha < math.inf:
        raise ValueError(f"alpha must be in (1, infinity), got {alpha}")
    for name, value, least in (("steps", steps, 0), ("neurons", neurons, 1)):
        if value < least:
            raise ValueError(f"{name} must be in [{least}, infinity), got {value}")
    layers = weight_layers(network)
    if not -len(layers) <= layer < len(layers):
        raise Incompatible(
            f"the trigger follows a neuron of layer {layer}, but the network has {len(layers)} linear or convolutional "
            "layers. Use mlp or cnn_small."
        )
    module = layers[layer]
    black = torch.zeros(1, *shape, device=device_of(network))
    pattern = patch.pattern.detach().to(black)
    pattern = (pattern.clamp(0, 1) if clip else pattern.clone()).requires_grad_()
    mean, square = torch.zeros_like(pattern), torch.zeros_like(pattern)
    with eval_mode(network), heard(module) as found:

        def values(pattern: Tensor) -> Tensor:
            network(replace(patch, pattern=pattern).stamp(black))
            output = found["output"].movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            return output.flatten(1).mean(1)

        with torch.no_grad():
            before = values(pattern)
        chosen = _strongest(module, before, neurons)
        wanted = alpha * before[chosen].abs()
        best, least, still = pattern.detach().clone(), math.inf, 0
        for number in range(steps + 1):
            objective = (values(pattern)[chosen] - wanted).square().mean()
            if (now := float(objective.detach())) < least:
                best, least = pattern.detach().clone(), now
            if least < ENOUGH or number == steps or still == STILL:
                break
            (slope,) = torch.autograd.grad(objective, pattern)
            # the optimizer of torch takes as long for these few pixels as both passes through a small network
            mean, square = mean.lerp(slope, 1 - BETA1), square.lerp(slope.square(), 1 - BETA2)
            scale = (square / (1 - BETA2 ** (number + 1))).sqrt() + 1e-8
            moved = pattern.detach() - RATE / (1 - BETA1 ** (number + 1)) * mean / scale
            moved = moved.clamp(0, 1) if clip else moved
            still = still + 1 if torch.equal(moved, pattern) else 0
            pattern = moved.requires_grad_()
    return replace(patch, pattern=best.to(patch.pattern))


def _strongest(module: nn.Module, values: Tensor, count: int) -> Tensor:
    """The positions of the units with the largest sums of absolute weights, those above 0 first."""
    weight = module.get_parameter("weight").detach()
    scores = weight.abs().flatten(1).sum(1)
    if bool((values > 0).any()):
        scores = scores.masked_fill(values <= 0, -1.0)
        count = min(count, int((values > 0).sum()))
    return scores.topk(min(count, len(scores))).indices
