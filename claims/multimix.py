"""Claim: many mixtures of pairs of embeddings in each step make a small network more sure of what is right."""

from dataclasses import replace

from torch.nn import functional as F

from common import accuracy, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.procedures.multimix import MultiMix
from weathered.procedures.supervised import Supervised
from weathered.verification import Measured

SLUG = "multimix"
SENTENCE = (
    "On 200 training images a network that learns from 1,000 mixtures of pairs of embeddings in each step, in place of "
    "the images themselves, has a lower negative log likelihood on test images."
)
DATA = "scikit-learn digits, 200 train images, 1597 test images"
METRIC = "negative log likelihood on the test set, in nats, lower is better"
BASELINE = "cross entropy"
MAIN = "pairs"
ARMS = ("cross entropy", "pairs", "whole batch", "whole batch and clean loss")
HIGHER_IS_BETTER = False
ACCURACY = "test accuracy after the last epoch, in [0, 1]"
ALSO = (ACCURACY,)

TRAIN = 200
SETTINGS = Settings(epochs=150, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def measure(seed: int) -> Measured:
    """Likelihood and accuracy of each arm. The seed draws the split, the weights, the order and the mixtures."""
    train, test = split_digits(SLUG, seed, TRAIN)
    arms = {
        "cross entropy": Supervised(),
        "pairs": MultiMix(num_mixed=2, clean_weight=0.0),
        "whole batch": MultiMix(clean_weight=0.0),
        "whole batch and clean loss": MultiMix(clean_weight=1.0),
    }
    likelihood, hits = {}, {}
    for name, procedure in arms.items():
        model, settings = perceptron(train, (256, 256, 64)), replace(SETTINGS, seed=seed)
        logits = fit(Run(model, train, procedure=procedure, settings=settings)).predict(test)
        likelihood[name] = float(F.cross_entropy(logits, test.labels))
        hits[name] = accuracy(logits, test.labels)
    return Measured(likelihood, {ACCURACY: hits})
