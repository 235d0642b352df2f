"""Claim: the shape of a learned mask mixes images that their mixed label describes better (AutoMix, ECCV 2022).

Measured against mixup with each mask's mean, since a mask that is flat gains by its share alone.
"""

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from common import split_digits
from weathered.core.fit import fit
from weathered.core.objective import losses_of
from weathered.core.predict import eval_mode
from weathered.core.rng import draw_beta, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset, MemoryInputs
from weathered.losses.cross_entropy import CrossEntropy
from weathered.mixing.cutmix import cutmix, draw_box
from weathered.mixing.mixup import mixup
from weathered.nn.build import build_model
from weathered.procedures.automix import AutoMix, mix_by_mask, stage_map

EVEN = "mixup at the mask's mean share"
SLUG = "automix"
SENTENCE = (
    "On unseen pairs of images, masks of AutoMix lower the excess of the mixed cross entropy over the entropy of the "
    "mixed label below that of mixup at the mean share of each mask."
)
DATA = "scikit-learn digits enlarged to 16x16, 500 train and 1297 test images"
METRIC = "mixed cross entropy minus label entropy on test pairs under the averaged network, in nats"
BASELINE = EVEN
MAIN = "automix"
ARMS = ("mixup", "cutmix", "automix", EVEN)
HIGHER_IS_BETTER = False

TRAIN, CHUNK = 500, 50
ALPHA, MOMENTUM = 2.0, 0.99
SETTINGS = Settings(epochs=60, batch_size=50, lr=0.05, weight_decay=0.0)


def enlarge(digits: Dataset) -> Dataset:
    """The same digits with 16x16 pixels, bilinear."""
    x = digits.floats(torch.arange(len(digits)))
    x = torch.nn.functional.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False)
    return digits.replace(inputs=MemoryInputs((x * 255).round().to(torch.uint8)))


def train_automix(seed: int) -> tuple[Run, Dataset]:
    """A run of AutoMix to its end, and the test set."""
    train, test = (enlarge(part) for part in split_digits(SLUG, seed, TRAIN))
    model = build_model("cnn_small:width=16", train, seed=seed)
    run = Run(model, train, procedure=AutoMix(ALPHA, MOMENTUM, MOMENTUM), settings=replace(SETTINGS, seed=seed))
    return fit(run), test


def measure(seed: int) -> dict[str, float]:
    """Excess of each way of mixing under one trained network: its moving average, in evaluation mode.

    The seed draws the split, the weights, the order of the rows and, for all arms alike, partners and shares.
    """
    run, test = train_automix(seed)
    average, head = cast(Any, run.modules["average"]), run.modules["average_mix_head"]
    rng = generator(seed, "pairs", SLUG)
    sums: dict[str, float] = {arm: 0.0 for arm in ARMS}
    with torch.no_grad(), eval_mode(average):
        for rows in torch.arange(len(test)).split(CHUNK):
            x, labels = test.floats(rows), test.labels[rows]
            lam, partner = float(draw_beta(ALPHA, rng)), torch.randperm(len(rows), generator=rng)
            box = draw_box((16, 16), lam, rng)
            maps = stage_map(average, x, -2)
            mask = run.modules["mix_block"](maps, maps[partner], lam, (16, 16))
            mixed = {
                "mixup": (mixup(x, lam, partner), lam),
                # the label follows the pixels that were really pasted
                "cutmix": (cutmix(x, box, partner), 1 - float(box.share((16, 16)))),
                "automix": (mix_by_mask(x, x[partner], 1 - mask), lam),
                EVEN: (mixup(x, 1 - mask.mean((1, 2, 3)), partner), lam),
            }
            for arm, (images, share) in mixed.items():
                features = average.forward_head(average.forward_features(images), pre_logits=True)
                sums[arm] += float(excess(head(features), labels, labels[partner], share).sum())
    return {arm: total / len(test) for arm, total in sums.items()}


def excess(logits: Tensor, own: Tensor, partner: Tensor, lam: float) -> Tensor:
    """Cross entropy against lam of one label and 1 - lam of another, minus the entropy of that mixture, (B,)."""
    target = Target.hard(own).blend(Target.hard(partner), torch.tensor(lam))
    entropy = -sum(share * math.log(share) for share in (lam, 1 - lam) if share > 0)
    return losses_of(CrossEntropy(), logits, target) - entropy * (own != partner)
