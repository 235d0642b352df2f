"""Thumbnails of samples as PNG data URIs, so that the report stays one file."""

import base64
import io

import numpy as np
from PIL import Image

LARGEST = 160
"""Pixels of the longer side; larger images are reduced, smaller ones are enlarged by the browser."""


def data_uri(image: np.ndarray) -> str:
    """A picture (C, H, W) uint8 as a PNG data URI: one channel grey, three colour, other counts their mean in grey.

    Raises ValueError for another shape or type.
    """
    if image.ndim != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"expected a uint8 picture (C, H, W), got {image.dtype} of shape {image.shape}")
    if len(image) == 3:
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    else:
        picture = Image.fromarray(image.mean(0).round().astype(np.uint8))
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
