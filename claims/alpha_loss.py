"""Claim: a large alpha keeps a network from memorising wrong labels (alpha-loss, IEEE Trans. Inf. Theory 2022)."""

from dataclasses import replace

from common import MEMORISED, accuracy, memorised, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.roles import Loss
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.losses.alpha_loss import AlphaLoss
from weathered.losses.cross_entropy import CrossEntropy
from weathered.losses.forward_correction import ForwardCorrection
from weathered.losses.gce import GeneralizedCrossEntropy
from weathered.losses.symmetric_cross_entropy import SymmetricCrossEntropy
from weathered.verification import Measured

SLUG = "alpha-loss"
SENTENCE = (
    "With half of the training labels wrong, a network trained with alpha-loss at alpha 4 is more accurate at the end "
    "of training than one trained with cross entropy, which is alpha 1."
)
DATA = "scikit-learn digits, 1000 train images with 50 % symmetric label noise, 797 clean test images"
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "alpha 4"
ARMS = (
    "cross entropy",
    "alpha 2",
    "alpha 4",
    "alpha 8",
    "gce, q 0.7",
    "symmetric cross entropy, 0.1 and 1",
    "forward correction, true rate",
)
HIGHER_IS_BETTER = True
ALSO = (MEMORISED,)

TRAIN, NOISE = 1000, 0.5
SETTINGS = Settings(epochs=100, batch_size=50, lr=0.1, momentum=0.9, weight_decay=0.0, schedule="cosine")


def measure(seed: int) -> Measured:
    """Last test accuracy of each arm, and the share of wrong labels it memorised.

    The seed draws the split, the noise, the weights and the order of the rows.
    """
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    losses: dict[str, Loss] = {
        "cross entropy": CrossEntropy(),
        **{f"alpha {alpha:g}": AlphaLoss(alpha) for alpha in (2.0, 4.0, 8.0)},
        "gce, q 0.7": GeneralizedCrossEntropy(0.7),
        "symmetric cross entropy, 0.1 and 1": SymmetricCrossEntropy(0.1, 1.0),
        "forward correction, true rate": ForwardCorrection(noise_rate=NOISE),
    }
    values, learned_by_heart = {}, {}
    for name, loss in losses.items():
        run = fit(Run(perceptron(train, (512, 512)), train, loss=loss, settings=replace(SETTINGS, seed=seed)))
        values[name] = accuracy(run.predict(test), test.labels)
        learned_by_heart[name] = memorised(run.predict(train), train)
    return Measured(values, {MEMORISED: learned_by_heart})
