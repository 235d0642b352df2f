"""Claim: blending images and joining captions improves retrieval (MixGen, WACV Workshops 2023)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from weathered.audit.retrieval import ranks_of_pairs, recall_at
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.sources import load
from weathered.mixing.mixgen import MixGen
from weathered.nn.network import assemble, seeded
from weathered.procedures.contrastive import Contrastive
from weathered.verification import Measured

SLUG = "mixgen"
SENTENCE = (
    "Trained with a quarter of each batch replaced by blended images with joined captions, a contrastive model finds "
    "the caption of a new image at the first rank more often than one trained without."
)
DATA = (
    "432 generated images of 32 pixels, each with one of 4 shapes, 6 colours, 9 places and 2 sizes named by its "
    "caption, 256 to train on and the 176 other combinations to retrieve among"
)
METRIC = "image to text recall at 1 among the held-out pairs, in [0, 1]"
ALSO = (
    "text to image recall at 1 among the held-out pairs, in [0, 1]",
    "image to text recall at 5 among the held-out pairs, in [0, 1]",
)
BASELINE = "no mixing"
MAIN = "mixgen"
ARMS = ("no mixing", "mixgen", "joined captions alone")

TRAIN = 256
SETTINGS = Settings(epochs=60, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.01)


class Body(nn.Module):
    """Three 3x3 convolutions of 24, 32 and 48 channels, each then halved in size; 768 features of 32 pixel images."""

    num_features = 48 * 4 * 4

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 24), (24, 32), (32, 48)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x.flatten(1)


def measure(seed: int) -> Measured:
    """Recall of each arm. The seed draws the split, the weights and the order of the rows."""
    pairs = load("captions:432")
    rows = torch.randperm(len(pairs), generator=generator(seed, "claim", SLUG))
    train, test = pairs.select(rows[:TRAIN]), pairs.select(rows[TRAIN:])

    def model(seed: int) -> nn.Module:
        with seeded(seed):
            return assemble(Body(), train, "linear")

    arms: dict[str, list[Any]] = {"no mixing": [], "mixgen": [MixGen()], "joined captions alone": [MixGen(lam=1.0)]}
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {name: {} for name in ALSO}
    for name, transforms in arms.items():
        host = Contrastive()
        fit(Run(model, train, procedure=host, transforms=transforms, settings=replace(SETTINGS, seed=seed)))
        of_caption, of_image = ranks_of_pairs(host.towers, test)
        values[name] = recall_at(of_caption, 1).value
        also[ALSO[0]][name] = recall_at(of_image, 1).value
        also[ALSO[1]][name] = recall_at(of_caption, 5).value
    return Measured(values, also)
