"""Claim: a clipped hinge needs cross entropy beside it to train a network of Linf distances (ICLR 2022)."""

from dataclasses import replace

import torch

from common import accuracy, split_digits
from weathered.attacks.pgd import PGD
from weathered.certify.interval_bounds import IntervalBounds
from weathered.certify.linf_margin import LinfMargin
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.procedures.linf_distance_net import LinfDistanceNet
from weathered.verification import Measured

SLUG = "linf-distance-net"
SENTENCE = (
    "A clipped hinge with a decaying share of cross entropy certifies more images of a network of Linf distances than "
    "the clipped hinge alone."
)
DATA = "scikit-learn digits, 1297 train and 500 test images"
METRIC = "accuracy certified by margins within Linf distance 0.1 of pixels in [0, 1], as a share in [0, 1]"
BASELINE = "clipped hinge alone"
MAIN = "mixture"
ARMS = ("clipped hinge alone", "mixture")
HIGHER_IS_BETTER = True
ALSO = (
    "accuracy without changes, in [0, 1]",
    "accuracy certified by interval bounds within Linf distance 0.1, in [0, 1]",
    "accuracy under PGD of 20 steps within Linf distance 0.1, in [0, 1]",
)

TRAIN, RADIUS = 1297, 0.1
SETTINGS = Settings(epochs=120, batch_size=64, optimizer="adam", lr=0.03, weight_decay=0.0, evaluations=0)
WEIGHTS = {"clipped hinge alone": (0.0, 0.0), "mixture": (0.1, 0.001)}


def measure(seed: int) -> Measured:
    """Certified accuracy of each arm; arms differ in the weight of cross entropy alone.

    The seed draws the split, the weights, the order of the rows and the starts of the attack.
    """
    train, test = split_digits(SLUG, seed, TRAIN)
    x = test.floats(torch.arange(len(test)))
    values, also = {}, {name: {} for name in ALSO}
    for arm, (first, last) in WEIGHTS.items():
        model = build_model("linf-net:width=96,depth=3", train, seed=seed)
        procedure = LinfDistanceNet(epsilon=0.2, lambda_start=first, lambda_end=last)
        run = fit(Run(model, train, procedure=procedure, settings=replace(SETTINGS, seed=seed)))
        logits = run.predict(test)
        values[arm] = float(LinfMargin().certify(run.model, x).certifies(test.labels, RADIUS).double().mean())
        bounds = IntervalBounds(RADIUS).certify(run.model, x)
        moved = PGD(RADIUS)(run.model, x, test.labels, generator(seed, "attack", SLUG))
        with torch.no_grad():
            attacked = run.model.eval()(moved)
        found = (
            accuracy(logits, test.labels),
            float((bounds.certified & (bounds.labels == test.labels)).double().mean()),
            accuracy(attacked, test.labels),
        )
        for name, value in zip(ALSO, found, strict=True):
            also[name][arm] = value
    return Measured(values, also)
