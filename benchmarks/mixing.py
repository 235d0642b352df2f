"""Mixing a batch: ours against torchvision v2, timm and kornia, per batch and per sample."""

from functools import partial

import kornia.augmentation as K
import torch
from timm.data import Mixup
from torchvision.transforms import v2

from timing import Row, side_by_side
from weathered import Batch, CutMix, MixUp

CLASSES = 100
SIZES = {"128x3x32x32": (128, 3, 32, 32), "64x3x224x224": (64, 3, 224, 224)}


def rows() -> list[Row]:
    found = []
    for name, shape in SIZES.items():
        rng = torch.Generator().manual_seed(0)
        batch = Batch.of(torch.rand(shape, generator=rng), torch.randint(CLASSES, (shape[0],), generator=rng))
        for kind in ("MixUp", "CutMix"):
            found += _per_batch(kind, name, batch) + _per_sample(kind, name, batch)
    return found


def _per_batch(kind: str, name: str, batch: Batch) -> list[Row]:
    repeats, inner = (40, 10) if batch.x.shape[-1] == 32 else (20, 1)
    mine = partial(_ours, {"MixUp": MixUp, "CutMix": CutMix}[kind](), batch, torch.Generator().manual_seed(1))
    vision = partial({"MixUp": v2.MixUp, "CutMix": v2.CutMix}[kind](alpha=1.0, num_classes=CLASSES), *_pair(batch))
    timm = partial(_timm, _timm_mixer(kind, "batch"), *_pair(batch))
    _check(mine, batch.x)
    what = f"{kind} per batch, {name}"
    return [
        side_by_side(what, "torchvision v2", mine, vision, 1.0, repeats, inner),
        side_by_side(what, "timm", mine, timm, 1.0, repeats, inner),
    ]


def _per_sample(kind: str, name: str, batch: Batch) -> list[Row]:
    target, repeats, inner = (8.0, 15, 3) if batch.x.shape[-1] == 32 else (2.0, 8, 1)
    part = {"MixUp": MixUp, "CutMix": CutMix}[kind](per_sample=True)
    mine = partial(_ours, part, batch, torch.Generator().manual_seed(1))
    kornia = partial(
        {"MixUp": K.RandomMixUpV2, "CutMix": K.RandomCutMixV2}[kind](data_keys=["input", "class"]), *_pair(batch)
    )
    timm = partial(_timm, _timm_mixer(kind, "elem"), *_pair(batch))
    _check(mine, batch.x)
    what = f"{kind} per sample, {name}"
    return [
        side_by_side(what, "kornia", mine, kornia, target, repeats, inner),
        side_by_side(what, "timm elem", mine, timm, target, repeats, inner),
    ]


def _pair(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.x, batch.target.single()


def _ours(part, batch: Batch, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    mixed = part(batch, rng)
    return mixed.x, mixed.target.dense(CLASSES)


def _timm_mixer(kind: str, mode: str) -> Mixup:
    alphas = {"mixup_alpha": float(kind == "MixUp"), "cutmix_alpha": float(kind == "CutMix")}
    return Mixup(**alphas, mode=mode, label_smoothing=0.0, num_classes=CLASSES)


def _timm(mixer: Mixup, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """It mixes in place, so it is given a copy, as a loop that keeps its inputs must."""
    return mixer(x.clone(), y)


def _check(mixer, x: torch.Tensor) -> None:
    """A mix keeps shape and range, and its targets are distributions; the draws of the libraries differ."""
    mixed, target = mixer()
    assert mixed.shape == x.shape
    assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 1
    torch.testing.assert_close(target.sum(1), torch.ones(len(x)))
