"""What distillers share: the learned images, networks with batch statistics, learning from the images, their file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from weathered.core.atomic import write_atomically
from weathered.core.errors import DataError
from weathered.data.dataset import Dataset, MemoryInputs
from weathered.data.patch import Patch

BATCH = 256
"""Synthetic images of a step when a network learns from them."""

FILE = "synthetic.safetensors"


class SyntheticSet(nn.Module):
    """Images that are learned, kept in units of deviations from the mean of the real ones, from standard normal draws.

    labels (M,): of the images. shape: (C, H, W). mean, std (C,): of real pixels in [0, 1]. Calling it gives the images
    (M, C, H, W) in units of pixels; they may leave [0, 1].
    """

    labels: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        labels: Int[Tensor, "M"],
        shape: tuple[int, ...],
        mean: Float[Tensor, "C"],
        std: Float[Tensor, "C"],
        rng: torch.Generator,
    ):
        super().__init__()
        self.whitened = nn.Parameter(torch.randn(len(labels), *shape, generator=rng))
        self.register_buffer("labels", labels)
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))

    def forward(self) -> Float[Tensor, "M C H W"]:
        return self.whitened * self.std + self.mean


def settle_norms(network: nn.Module, images: Tensor) -> None:
    """Leave the network in evaluation mode, its batch statistics those of these images and nothing else."""
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def learn_from(
    network: nn.Module,
    images: Float[Tensor, "M ..."],
    labels: Int[Tensor, "M"],
    *,
    epochs: int,
    lr: float,
    rng: torch.Generator,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    drop: bool = False,
) -> None:
    """Train a network on synthetic images by SGD, in place, in batches of 256. It ends without gradients.

    drop: a tenth of the learning rate from half of the epochs on. rng: draws the order.
    """
    network.train().requires_grad_(True)
    images = images.detach()
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=momentum, weight_decay=weight_decay)
    for epoch in range(epochs):
        if drop and epoch == epochs // 2:
            optimizer.param_groups[0]["lr"] = lr / 10
        order = torch.randperm(len(labels), generator=rng).to(labels.device)
        for rows in order.split(BATCH):
            # batch statistics need two images
            if len(rows) > 1 or len(order) == 1:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(network(images[rows]), labels[rows]).backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Distilled:
    """A synthetic set as it lies in a file. images (M, C, H, W), floats in units of pixels. labels (M,).

    trigger, target: of the backdoor that was planted, or None. about: how it was made, texts and numbers by name.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    trigger: Patch | None = None
    target: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def dataset(self, name: str = "synthetic") -> Dataset:
        """The images as data, floats that may leave [0, 1], for audits and loops of one's own."""
        return Dataset(MemoryInputs(self.images), self.labels, self.class_names, name)


def write_distilled(path: Path, distilled: Distilled) -> None:
    """Write a synthetic set as safetensors: tensors `images`, `labels` and, of a backdoor, `trigger` and `mask`.

    The metadata say in JSON how it was made, the names of the classes, and of a backdoor its target class and place.
    """
    tensors = {"images": distilled.images.detach().cpu().contiguous(), "labels": distilled.labels.cpu().contiguous()}
    about: dict[str, Any] = {**distilled.about, "class_names": distilled.class_names, "backdoor": None}
    if distilled.trigger is not None:
        patch = distilled.trigger
        tensors["trigger"] = patch.pattern.detach().cpu().contiguous()
        tensors["mask"] = patch.covers(*distilled.images.shape[-2:])
        about["backdoor"] = {
            "target": distilled.target,
            "top": patch.top,
            "left": patch.left,
            "trigger": patch.pattern.tolist(),
        }
    metadata = {key: json.dumps(value) for key, value in about.items()}
    write_atomically(path, lambda part: part.write_bytes(save(tensors, metadata)))


def read_distilled(path: Path | str) -> Distilled:
    """Read what `write_distilled` wrote. Raises DataError for a file that is missing, damaged or another kind."""
    try:
        with safe_open(path, "pt") as file:
            about = {key: json.loads(value) for key, value in file.metadata().items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        backdoor = about.pop("backdoor")
        patch = backdoor and Patch(tensors["trigger"], backdoor["top"], backdoor["left"])
        names = tuple(about.pop("class_names"))
        target = backdoor["target"] if backdoor else None
        return Distilled(tensors["images"], tensors["labels"], names, patch, target, about)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no synthetic data set, or it is damaged.") from error
