"""Claim: pasting boxes of other images makes a network look at more than one spot (CutMix, ICCV 2019)."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from common import accuracy, split_digits
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.mixing.cutmix import CutMix
from weathered.mixing.mixup import MixUp
from weathered.nn.network import seeded

SLUG = "cutmix"
SENTENCE = (
    "When a quarter of a test image is hidden, a network trained with boxes of other images pasted into about half "
    "of the batches, labels mixed by area, is more accurate than one trained on whole images."
)
DATA = "scikit-learn digits at 16 x 16, 500 train and 1297 test images, each test image with one quadrant black"
METRIC = "test accuracy, mean over the four quadrants, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "cutmix p 0.5"
ARMS = ("cross entropy", "mixup", "cutmix p 0.5", "cutmix p 1")
HIGHER_IS_BETTER = True

TRAIN = 500
SIZE = 16
SETTINGS = Settings(epochs=60, batch_size=50, lr=0.1, nesterov=True, weight_decay=5e-4, schedule="cosine")


def enlarged(dataset: Dataset) -> Dataset:
    """The images at SIZE x SIZE pixels, bilinear."""
    x = F.interpolate(dataset.inputs.fetch(torch.arange(len(dataset))).float(), (SIZE, SIZE), mode="bilinear")
    return Dataset.of(x.round().byte(), dataset.labels, dataset.class_names)


def occluded(dataset: Dataset, row: int, column: int) -> Dataset:
    """The images with one quadrant black."""
    x, half = dataset.inputs.fetch(torch.arange(len(dataset))).clone(), SIZE // 2
    x[:, :, row * half : (row + 1) * half, column * half : (column + 1) * half] = 0
    return Dataset.of(x, dataset.labels, dataset.class_names)


def network(seed: int) -> nn.Module:
    """Three 3x3 convolutions of 16, 32 and 32 channels with strides 1, 2, 2, global average pooling, a linear head."""
    with seeded(seed):
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
            convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def measure(seed: int) -> dict[str, float]:
    """Accuracy of each arm on occluded images. The seed draws the split, the weights and the order of the rows."""
    train, test = (enlarged(part) for part in split_digits(SLUG, seed, TRAIN))
    hidden = [occluded(test, row, column) for row in (0, 1) for column in (0, 1)]
    arms = {
        "cross entropy": [],
        "mixup": [MixUp()],
        "cutmix p 0.5": [CutMix(probability=0.5)],
        "cutmix p 1": [CutMix()],
    }
    values = {}
    for name, transforms in arms.items():
        run = fit(Run(network, train, transforms=transforms, settings=replace(SETTINGS, seed=seed)))
        values[name] = sum(accuracy(run.predict(part), part.labels) for part in hidden) / len(hidden)
    return values
