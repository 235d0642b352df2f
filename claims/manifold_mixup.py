"""Claim: training on blended hidden states keeps a network from memorising wrong labels (Verma et al., ICML 2019)."""

from dataclasses import replace

from torch.nn import functional as F

from common import accuracy, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.procedures.manifold_mixup import ManifoldMixup
from weathered.procedures.supervised import Supervised
from weathered.verification import Measured

SLUG = "manifold-mixup"
SENTENCE = (
    "With 40 % of the training labels wrong, a network trained on pairs that are blended at the input or after one of "
    "its first two layers, the shares from Beta(2, 2), is more accurate at the end of training than one trained "
    "without blending."
)
DATA = "scikit-learn digits, 1000 train images with 40 % symmetric label noise, 797 clean test images"
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "manifold mixup alpha 2"
ARMS = ("cross entropy", "mixup alpha 1", "manifold mixup alpha 2")
HIGHER_IS_BETTER = True
LIKELIHOOD = "negative log likelihood on the test set, in nats, lower is better"
ALSO = (LIKELIHOOD,)

TRAIN = 1000
NOISE = 0.4
LAYERS = ("input", "body.layers.2", "body.layers.4")
SETTINGS = Settings(epochs=150, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def measure(seed: int) -> Measured:
    """Last test accuracy of each arm. The seed draws the split, the noise, the weights and the order of the rows."""
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    arms = {
        "cross entropy": Supervised(),
        "mixup alpha 1": ManifoldMixup(alpha=1.0, layers=("input",)),
        "manifold mixup alpha 2": ManifoldMixup(alpha=2.0, layers=LAYERS),
    }
    values, likelihood = {}, {}
    for name, procedure in arms.items():
        model, settings = perceptron(train, (256, 256, 64)), replace(SETTINGS, seed=seed)
        logits = fit(Run(model, train, procedure=procedure, settings=settings)).predict(test)
        values[name] = accuracy(logits, test.labels)
        likelihood[name] = float(F.cross_entropy(logits, test.labels))
    return Measured(values, {LIKELIHOOD: likelihood})
