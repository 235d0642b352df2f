"""All 15 corruptions of 1,000 colour images of 32x32, batched, against the usual package, which takes one at a time.

The package was written for older libraries; three names that these have dropped are given back to it, nothing else.
"""

import warnings
from typing import Any

import numpy as np
import torch
from skimage import filters

from timing import Row, side_by_side
from weathered.core.rng import generator
from weathered.data.corruptions import CORRUPTIONS, corrupt

IMAGES, SIDE, SEVERITY = 1000, 32, 3


def rows() -> list[Row]:
    peer = _package()
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255

    def ours() -> list[torch.Tensor]:
        return [corrupt(batch, kind, SEVERITY, generator(0, "benchmark", kind)) for kind in CORRUPTIONS]

    def theirs() -> list[np.ndarray]:
        names = [peer(image, corruption_name=kind, severity=SEVERITY) for kind in CORRUPTIONS for image in images]
        return names

    changed = {kind: float((new - batch).abs().mean()) for kind, new in zip(CORRUPTIONS, ours(), strict=True)}
    assert all(change > 0 for change in changed.values()), changed
    for kind in CORRUPTIONS:
        assert (peer(images[0], corruption_name=kind, severity=SEVERITY) != images[0]).any(), kind
    what = f"15 corruptions of {IMAGES} images, 3x{SIDE}x{SIDE}"
    return [side_by_side(what, "imagecorruptions, image by image", ours, theirs, 10.0, 3, 1, 0)]


def _package() -> Any:
    warnings.simplefilter("ignore", (UserWarning, DeprecationWarning))
    np.float64 = np.float64
    from imagecorruptions import corruptions

    def gaussian(image: np.ndarray, sigma: float = 1, multichannel: bool = False, **options: Any) -> np.ndarray:
        return filters.gaussian(image, sigma=sigma, channel_axis=-1 if multichannel else None, **options)

    corruptions.gaussian = gaussian
    from imagecorruptions import corrupt as corrupt_one

    return corrupt_one
