"""Claim: adversarial training wants weak augmentation, a rising budget and a large decay (light recipe, SaTML 2023)."""

from dataclasses import replace
from typing import Any

import torch

from common import accuracy, split_digits
from weathered.attacks.pgd import PGD
from weathered.augment.crop_flip import CropFlip
from weathered.augment.random_erasing import RandomErasing
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.cross_entropy import LabelSmoothing
from weathered.mixing.cutmix import CutMix
from weathered.mixing.mixup import MixUp
from weathered.mixing.one_of import OneOf
from weathered.nn.build import build_model
from weathered.procedures.pgd_training import PGDTraining

SLUG = "robust-vit-recipe"
SENTENCE = (
    "A vision transformer that is trained against a one-step attack resists 40 steps better with weak augmentation, a "
    "budget that rises over the first quarter of training and a weight decay of 0.5 than with mixing, erasing, the "
    "full budget from the start and a decay of 0.05."
)
DATA = "scikit-learn digits, 1000 train images, 500 of the other 797 attacked"
METRIC = "accuracy under PGD of 40 steps at epsilon 0.1 in Linf, in [0, 1]"
BASELINE = "canonical recipe"
MAIN = "light recipe"
ARMS = ("canonical recipe", "weak augmentation alone", "light recipe")
HIGHER_IS_BETTER = True

TRAIN, ATTACKED = 1000, 500
EPSILON = 0.1
SETTINGS = Settings(
    epochs=80, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.05, no_bias_decay=True, warmup=5 / 80
)
MODEL = "vit:patch=2,width=32,depth=2,heads=4"


def measure(seed: int) -> dict[str, float]:
    """Accuracy of each arm under attack. The seed draws split, weights, order, augmentation and starts of attacks."""
    train, test = split_digits(SLUG, seed, TRAIN)
    rows = torch.arange(ATTACKED)
    weak = [CropFlip(padding=1, flip=False)]
    heavy = [*weak, RandomErasing(probability=0.25, area=9 / 64), OneOf([MixUp(0.8), CutMix(0.8)])]
    arms: dict[str, tuple[list[Any], float, float]] = {
        "canonical recipe": (heavy, 0.0, 0.05),
        "weak augmentation alone": (weak, 0.0, 0.05),
        "light recipe": (weak, 0.25, 0.5),
    }
    values = {}
    for name, (transforms, warm_up, decay) in arms.items():
        run = fit(
            Run(
                build_model(MODEL, train, seed=seed),
                train,
                procedure=PGDTraining(EPSILON, steps=1, reach=1.5, warm_up=warm_up),
                loss=LabelSmoothing(0.1),
                transforms=transforms,
                settings=replace(SETTINGS, weight_decay=decay, seed=seed),
            )
        )
        attack = PGD(EPSILON, steps=40, step_size=EPSILON / 4)
        moved = attack(run.model, test.floats(rows), test.labels[rows], generator(seed, "attack", SLUG))
        with torch.no_grad():
            values[name] = accuracy(run.model.eval()(moved), test.labels[rows])
    return values
