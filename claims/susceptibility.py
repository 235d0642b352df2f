"""Claim: among models of high training accuracy those of low susceptibility generalise (Susceptibility, ICLR 2023)."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import correlation, fmean

from torch import nn

from common import MEMORISED, accuracy, memorised, split_digits
from weathered.audit.susceptibility import Susceptibility, regions
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.nn.network import seeded
from weathered.verification import Measured

SLUG = "susceptibility"
SENTENCE = (
    "Among twelve networks trained with half of the labels wrong, those above the mean in training accuracy and below "
    "it in susceptibility are on average more accurate on test images than all those above it in training accuracy."
)
DATA = (
    "scikit-learn digits, 1000 train images with 50 % symmetric label noise, 797 clean test images, which without "
    "their labels are the inputs of the probe too; perceptrons of width 8, 32, 128 and 512, plain, with dropout 0.5 "
    "and with weight decay 2e-2"
)
METRIC = "mean test accuracy after the last epoch of the networks picked, of all twelve where none is, in [0, 1]"
MAIN = "region 1"
BASELINE = "high training accuracy"
ARMS = (BASELINE, MAIN, "regions 2 and 3", "low susceptibility", "all twelve")
HIGHER_IS_BETTER = True
SEEDS = 5
PICKED = "how many of the twelve networks are picked"
TRACKS = "Pearson correlation of susceptibility and the share memorised over all twelve, the same in each row"
FITS = "Pearson correlation of training accuracy and the share memorised over all twelve, the same in each row"
ALSO = (MEMORISED, PICKED, TRACKS, FITS)

TRAIN, NOISE = 1000, 0.5
WIDTHS = (8, 32, 128, 512)
KINDS = ((0.0, 5e-4), (0.5, 5e-4), (0.0, 2e-2))
"""Dropout and weight decay: plain, with dropout, with strong weight decay."""


@dataclass(frozen=True)
class Finished:
    """A trained network: training accuracy on the given labels, susceptibility, test accuracy, share memorised."""

    fitted: float
    zeta: float
    test: float
    heart: float


def measure(seed: int) -> Measured:
    """Mean test accuracy of the networks that each rule picks, and what was memorised.

    The seed draws the split, the noise, the weights, the order of the rows and the probes.
    """
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    models = [finished(train, test, width, *kind, seed) for width in WIDTHS for kind in KINDS]
    fitted, zeta, heart = ([getattr(m, name) for m in models] for name in ("fitted", "zeta", "heart"))
    number = regions(fitted, zeta)
    arms: dict[str, Callable[[int], bool]] = {
        "high training accuracy": lambda i: number[i] in (1, 2),
        "region 1": lambda i: number[i] == 1,
        "regions 2 and 3": lambda i: number[i] in (2, 3),
        "low susceptibility": lambda i: number[i] in (1, 3),
        "all twelve": lambda i: True,
    }
    picked = {arm: [m for i, m in enumerate(models) if rule(i)] for arm, rule in arms.items()}
    also = {
        MEMORISED: {arm: fmean(m.heart for m in chosen or models) for arm, chosen in picked.items()},
        PICKED: {arm: float(len(chosen)) for arm, chosen in picked.items()},
        TRACKS: dict.fromkeys(arms, correlation(zeta, heart)),
        FITS: dict.fromkeys(arms, correlation(fitted, heart)),
    }
    return Measured({arm: fmean(m.test for m in chosen or models) for arm, chosen in picked.items()}, also)


def finished(train: Dataset, test: Dataset, width: int, dropout: float, decay: float, seed: int) -> Finished:
    """Train one network with a probe at the start of each epoch."""
    watch = Susceptibility(batch=128, pool="held")
    settings = Settings(epochs=80, batch_size=50, lr=0.1, momentum=0.9, weight_decay=decay, seed=seed)
    run = fit(Run(perceptron(width, dropout), train, probe=watch, aux={"held": test}, settings=settings))
    fitted = run.predict(train)
    return Finished(
        accuracy(fitted, train.labels),
        watch.metrics()["susceptibility"],
        accuracy(run.predict(test), test.labels),
        memorised(fitted, train),
    )


def perceptron(width: int, dropout: float) -> Callable[[int], nn.Module]:
    """A function seed -> two hidden layers on digits in [0, 1], with dropout after each."""

    def build(seed: int) -> nn.Module:
        with seeded(seed):
            hidden = [(nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)) for size in (64, width)]
            return nn.Sequential(nn.Flatten(), *(layer for layers in hidden for layer in layers), nn.Linear(width, 10))

    return build
