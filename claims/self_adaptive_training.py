"""Claim: targets that follow the network's own predictions withstand wrong labels (Self-Adaptive Training)."""

from common import MEMORISED, accuracy, memorised, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.procedures.self_adaptive_training import SelfAdaptiveTraining
from weathered.procedures.supervised import Supervised
from weathered.verification import Measured

SLUG = "self-adaptive-training"
SENTENCE = (
    "With half of the training labels wrong, a network whose targets follow its own predictions from a tenth of "
    "training on is more accurate at the end of training than one trained with cross entropy."
)
DATA = "scikit-learn digits, 1000 train images with 50 % symmetric label noise, 797 clean test images"
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "start 0.1"
ARMS = ("cross entropy", "start 0.1", "start 0.1, without weights", "start 0.2", "start 0.4")
HIGHER_IS_BETTER = True
CORRECTED = "share of the training images whose label is right after training, in [0, 1]"
ALSO = (MEMORISED, CORRECTED)

TRAIN, NOISE = 1000, 0.5


def measure(seed: int) -> Measured:
    """Last test accuracy of each arm. The seed draws the split, the noise, the weights and the order of the rows."""
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    procedures: dict[str, Procedure] = {
        "cross entropy": Supervised(),
        "start 0.1": SelfAdaptiveTraining(0.1),
        "start 0.1, without weights": SelfAdaptiveTraining(0.1, weighted=False),
        "start 0.2": SelfAdaptiveTraining(0.2),
        "start 0.4": SelfAdaptiveTraining(0.4),
    }
    settings = Settings(epochs=100, batch_size=50, lr=0.1, momentum=0.9, weight_decay=5e-4, seed=seed)
    values, learned_by_heart, right = {}, {}, {}
    for name, procedure in procedures.items():
        run = fit(Run(perceptron(train, (512, 512)), train, procedure=procedure, settings=settings))
        values[name] = accuracy(run.predict(test), test.labels)
        learned_by_heart[name] = memorised(run.predict(train), train)
        labels = procedure.corrected_labels() if isinstance(procedure, SelfAdaptiveTraining) else train.labels
        right[name] = float((labels == clean.labels).double().mean())
    return Measured(values, {MEMORISED: learned_by_heart, CORRECTED: right})
