"""Images in memory brought to one square size, their masks with them."""

from torch import Tensor
from torch.nn.functional import interpolate

from weathered.core.pixels import MASK, main_labels
from weathered.data.dataset import Dataset, MemoryInputs


def resized(dataset: Dataset, size: int) -> Dataset:
    """The images in (size, size): their centre square, scaled with antialiasing, masks by the nearest pixel.

    Tables, and images that are decoded later, are left as they are.
    """
    inputs = dataset.inputs
    if not isinstance(inputs, MemoryInputs) or not dataset.is_image or inputs.shape[-2:] == (size, size):
        return dataset
    square = centre_square(inputs.tensor).float()
    pixels = interpolate(square, (size, size), mode="bilinear", antialias=True)
    images = MemoryInputs(pixels.round().clamp(0, 255).byte())
    if not dataset.is_segmentation:
        return dataset.replace(inputs=images)
    cut = centre_square(dataset.extra[MASK][:, None]).float()
    masks = interpolate(cut, (size, size), mode="nearest-exact")[:, 0].byte()
    labels = main_labels(masks, dataset.num_classes)
    return dataset.replace(inputs=images, labels=labels, extra={**dataset.extra, MASK: masks})


def centre_square(images: Tensor) -> Tensor:
    """The largest square in the middle of images (N, C, H, W)."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]
