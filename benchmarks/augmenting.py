"""Augmenting a batch: ours at once against torchvision v2 image by image, as loaders call it."""

from functools import partial

import torch
from torchvision.transforms import v2

from timing import Row, side_by_side
from weathered import Batch, RandAugment, RandomErasing, TrivialAugment

KINDS = {
    "RandAugment": (RandAugment(num_ops=2, magnitude=9), v2.RandAugment(num_ops=2, magnitude=9)),
    "TrivialAugment": (TrivialAugment(), v2.TrivialAugmentWide()),
    "RandomErasing": (RandomErasing(fill="black"), v2.RandomErasing(p=0.5, scale=(0.02, 0.4), ratio=(0.3, 1 / 0.3))),
}


def rows() -> list[Row]:
    found = []
    for dtype in (torch.uint8, torch.float32):
        x = torch.randint(256, (128, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        x = x if dtype == torch.uint8 else x / 255
        batch = Batch.of(x, torch.zeros(128).long())
        for kind, (part, peer) in KINDS.items():
            ours = partial(part, batch, torch.Generator().manual_seed(1))
            theirs = partial(_image_by_image, peer, x)
            _check(ours().x, theirs(), x)
            what = f"{kind}, 128x3x32x32 {str(dtype).removeprefix('torch.')}"
            found.append(side_by_side(what, "torchvision v2", ours, theirs, 2.0, repeats=20))
    return found


def _image_by_image(transform, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([transform(image) for image in x])


def _check(ours: torch.Tensor, theirs: torch.Tensor, x: torch.Tensor) -> None:
    """Kind, shape and range are alike and about as many images change; the draws of the libraries differ."""
    shares = []
    for out in (ours, theirs):
        assert (out.dtype, out.shape) == (x.dtype, x.shape)
        assert 0 <= float(out.min()) <= float(out.max()) <= (255 if x.dtype == torch.uint8 else 1)
        shares.append(float((out != x).flatten(1).any(1).double().mean()))
    assert abs(shares[0] - shares[1]) < 0.2
