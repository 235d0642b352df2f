"""Claim: class means pulled towards a simplex lie further apart (centre collapse, CVPR 2023)."""

import torch
from torch.nn import functional as F

from common import LONG_TAIL, RAREST, LateDrop, accuracy, long_tailed_digits, perceptron, rarest_accuracy
from weathered.core.fit import fit
from weathered.core.predict import eval_mode
from weathered.core.run import Run
from weathered.data.dataset import Dataset
from weathered.procedures.base import features_of
from weathered.terms.center_collapse import CenterCollapse, class_centres
from weathered.verification import Measured

SLUG = "center-collapse"
SENTENCE = (
    "Trained on classes whose sizes differ by a factor of 50, with the class means of each batch pulled towards a "
    "simplex at weight 0.4, the two classes of a network whose mean features are most alike are less alike than "
    "without the pull."
)
DATA = LONG_TAIL
METRIC = "largest cosine between mean features of two classes of the test set, less the mean of all means"
BASELINE = "cross entropy"
MAIN = "weight 0.4"
ARMS = ("cross entropy", "weight 0.1", "weight 0.4", "weight 0.8", "weight 0.4, frozen projector and prior")
HIGHER_IS_BETTER = False
SEEDS = 8
BALANCED = "accuracy on the balanced test set after the last epoch, in [0, 1], higher is better"
RARE = f"{RAREST}, higher is better"
ALSO = (BALANCED, RARE)

EPOCHS = 60


def measure(seed: int) -> Measured:
    """Likeness of class means for each arm. The seed draws sizes, images, noise, weights and the order of the rows."""
    counts, train, _, test = long_tailed_digits(SLUG, seed)
    terms = {
        "cross entropy": [],
        "weight 0.1": [CenterCollapse(10, 0.1)],
        "weight 0.4": [CenterCollapse(10, 0.4)],
        "weight 0.8": [CenterCollapse(10, 0.8)],
        "weight 0.4, frozen projector and prior": [CenterCollapse(10, 0.4, prior=True, projector=True)],
    }
    settings = LateDrop(epochs=EPOCHS, batch_size=32, lr=0.05, momentum=0.9, weight_decay=2e-4, seed=seed)
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {BALANCED: {}, RARE: {}}
    for arm, given in terms.items():
        run = fit(Run(perceptron(train, (128, 32)), train, terms=given, settings=settings))
        values[arm] = largest_cosine(run, test)
        logits = run.predict(test)
        also[BALANCED][arm] = accuracy(logits, test.labels)
        also[RARE][arm] = rarest_accuracy(logits, test.labels, counts)
    return Measured(values, also)


@torch.no_grad()
def largest_cosine(run: Run, test: Dataset) -> float:
    """Of all pairs of class means, after the average of the means has been taken from each."""
    with eval_mode(run.model):
        features = features_of(run, run.model, test.floats(torch.arange(len(test))))
    means, _ = class_centres(features, test.labels)
    unit = F.normalize(means - means.mean(0), dim=1)
    return float((unit @ unit.T).fill_diagonal_(-1).max())
