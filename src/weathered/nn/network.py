"""Network: normalisation, a backbone and a head in one module, with timm's contract."""

import copy
import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.data.dataset import Dataset
from weathered.nn.heads import CosineHead, build_head


class Network(nn.Module):
    """Inputs as they come ([0, 1] for images and clips), normalised inside, so that attacks and mixing share one scale.

    body: a backbone with forward_features(x) and forward_head(f, pre_logits=True) -> (B, D).
    head: (B, D) -> (B, C). mean, std: (C,) per channel or (D,) per column, subtracted and divided.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, head: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.body, self.head = body, head
        shape = (-1, 1, 1) if mean.ndim == 1 else mean.shape
        self.register_buffer("mean", mean.view(shape).float())
        self.register_buffer("std", std.view(shape).float())

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def forward_features(self, x: Tensor) -> Tensor:
        """What the backbone sees: feature maps (B, D, h, w), tokens (B, N, D) or rows (B, D)."""
        return cast(Any, self.body).forward_features(self.normalize(x))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features (B, D) with pre_logits, else logits (B, C)."""
        pooled = cast(Any, self.body).forward_head(features, pre_logits=True)
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, intermediates_only: bool = True
    ) -> list[Tensor]:
        """Feature maps (B, D, h, w) after inner stages of a convolutional backbone; arguments as the backbone's."""
        return cast(Any, self.body).forward_intermediates(
            self.normalize(x), indices=indices, intermediates_only=intermediates_only
        )

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Float[Tensor, "B C"]:
        return self.forward_head(self.forward_features(x))


class TableNetwork(Network):
    """A network for rows (B, D): mean and std are per column."""

    def __init__(self, body: nn.Module, head: nn.Module, mean: Tensor, std: Tensor):
        super().__init__(body, head, mean[None], std[None])


CLIP_VALUES = 50_000_000
"""Numbers of clips that statistics are taken of, 400 MB in float64."""


def input_statistics(dataset: Dataset, sample: int = 5000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel (images, clips) or column (tables) over evenly spread rows.

    sample: at most so many rows, fewer of large clips. A constant channel gets deviation 1, so that it becomes 0 and
    not NaN.
    """
    if dataset.is_clip:
        sample = min(sample, max(1, CLIP_VALUES // math.prod(dataset.inputs.shape)))
    rows = torch.linspace(0, len(dataset) - 1, min(sample, len(dataset))).long().unique()
    x = dataset.floats(rows).double()
    dims = (0, 1, 3, 4) if dataset.is_clip else (0, 2, 3) if dataset.is_image else (0,)
    mean, std = x.mean(dims), x.std(dims, correction=0)
    return mean.float(), torch.where(std < 1e-6, torch.ones_like(std), std).float()


@contextmanager
def seeded(seed: int):
    """Torch's global generator, seeded inside and as it was outside; layer initialisers know no other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def model_facts(model: nn.Module) -> set[str]:
    """What a model provides to parts, read off the model itself."""
    facts = set()
    # a run takes features and logits from one pass, for which it calls all three
    if all(hasattr(model, name) for name in ("forward_features", "forward_head", "get_classifier")):
        facts.add("features")
    body = getattr(model, "body", model)
    if hasattr(body, "forward_intermediates") and not hasattr(body, "cls_token"):
        facts.add("stage_features")
    if hasattr(body, "cls_token"):
        facts.add("vit_tokens")
    if hasattr(model, "shortcut_logits"):
        facts.add("latent_blocks")
    if hasattr(model, "distance_layers"):
        facts.add("linf_distances")
    classifier = cast(Any, model).get_classifier() if hasattr(model, "get_classifier") else None
    if isinstance(classifier, CosineHead):
        facts.add("cosine_head")
    elif isinstance(classifier, nn.Linear):
        facts.add("linear_head")
    return facts


def assemble(body: nn.Module, dataset: Dataset, head: str) -> Network:
    """A backbone with `num_features`, statistics of the data set and a head of `linear` or `cosine` kind."""
    mean, std = input_statistics(dataset)
    classifier = build_head(head, int(cast(Any, body).num_features), dataset.num_classes, dataset.is_segmentation)
    network = Network if dataset.is_image or dataset.is_clip else TableNetwork
    return network(body, classifier, mean, std)


def fresh_copy(model: nn.Module | Callable[[int], nn.Module], reference: nn.Module, seed: int) -> nn.Module:
    """A second network of the same architecture with other initial weights.

    model: what the run was given. A function is called with `seed`. A module is copied, and each layer is drawn anew
    by its own `reset_parameters`: torch's default rule, whatever rule the network was built with, so a copy of a timm
    network starts otherwise than the network did, and pretrained weights are gone. Give a function where that matters.
    Raises ValueError if a parameter belongs to a layer without `reset_parameters`.
    """
    if not isinstance(model, nn.Module):
        return model(seed)
    twin = copy.deepcopy(reference)
    with seeded(seed):
        for name, module in twin.named_modules():
            if hasattr(module, "reset_parameters"):
                cast(Any, module).reset_parameters()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ValueError(
                    f"cannot draw new weights for '{name}' ({type(module).__name__} has no reset_parameters); "
                    "give the run a function seed -> model instead of a model"
                )
    return twin
