"""Claim: larger margins and late weights for rare classes help a balanced test (LDAM-DRW, NeurIPS 2019)."""

from typing import NamedTuple

from common import LONG_TAIL, LateDrop, accuracy, long_tailed_digits, perceptron
from weathered.core.fit import fit
from weathered.core.roles import Loss, Reweight
from weathered.core.run import Run
from weathered.losses.cross_entropy import CrossEntropy
from weathered.losses.ldam import LDAM
from weathered.weighting.drw import DRW

SLUG = "ldam-drw"
SENTENCE = (
    "Trained on classes whose sizes differ by a factor of 50, a network with a cosine head, margins that grow for "
    "rarer classes and class weights switched on late is more accurate on balanced data than one with a linear head "
    "trained with cross entropy."
)
DATA = LONG_TAIL
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "ldam-drw"
ARMS = ("cross entropy", "cross entropy, cosine head", "cross entropy and drw", "ldam", "ldam-drw")
HIGHER_IS_BETTER = True
SEEDS = 8

EPOCHS = 60
START = 0.8


class Arm(NamedTuple):
    """The head, the loss and the weights that tell the arms apart."""

    head: str
    loss: Loss
    reweight: Reweight | None


def measure(seed: int) -> dict[str, float]:
    """Balanced accuracy of each arm. The seed draws sizes, images, noise, weights and the order of the rows."""
    counts, train, _, test = long_tailed_digits(SLUG, seed)
    late = DRW(counts, start=START)
    arms = {
        "cross entropy": Arm("linear", CrossEntropy(), None),
        "cross entropy, cosine head": Arm("cosine", LDAM(counts, max_margin=0.0), None),
        "cross entropy and drw": Arm("linear", CrossEntropy(), late),
        "ldam": Arm("cosine", LDAM(counts), None),
        "ldam-drw": Arm("cosine", LDAM(counts), late),
    }
    settings = LateDrop(epochs=EPOCHS, batch_size=32, lr=0.05, momentum=0.9, weight_decay=2e-4, seed=seed)
    values = {}
    for name, arm in arms.items():
        # the source's initialisation; with torch's own the scaled cosine kills most units in the first epoch
        model = perceptron(train, (128, 32), arm.head, kaiming=True)
        run = fit(Run(model, train, loss=arm.loss, reweight=arm.reweight, settings=settings))
        values[name] = accuracy(run.predict(test), test.labels)
    return values
