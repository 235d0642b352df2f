"""Claim: factors and offsets for each class lift the rare ones (VS-loss, NeurIPS 2021)."""

from common import LONG_TAIL, RAREST, LateDrop, accuracy, long_tailed_digits, perceptron, rarest_accuracy
from weathered.core.fit import fit
from weathered.core.roles import Loss
from weathered.core.run import Run
from weathered.losses.cross_entropy import CrossEntropy
from weathered.losses.logit_adjustment import LogitAdjustment
from weathered.losses.vs_loss import VSLoss
from weathered.verification import Measured

SLUG = "vs-loss"
SENTENCE = (
    "Trained on classes whose sizes differ by a factor of 50, a network whose logits are scaled and shifted by class "
    "is more accurate on balanced data than one trained with cross entropy."
)
DATA = LONG_TAIL
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "gamma 0.1, tau 0.75"
ARMS = (
    "cross entropy",
    "gamma 0.1, tau 0.75",
    "gamma 0.15, tau 1",
    "gamma 0.3, tau 1",
    "gamma 0.15, tau 0",
    "logit adjustment, tau 1",
)
HIGHER_IS_BETTER = True
SEEDS = 8
ALSO = (RAREST,)

EPOCHS = 60


def measure(seed: int) -> Measured:
    """Balanced accuracy of each arm. The seed draws sizes, images, noise, weights and the order of the rows."""
    counts, train, _, test = long_tailed_digits(SLUG, seed)
    losses: dict[str, Loss] = {
        "cross entropy": CrossEntropy(),
        "gamma 0.1, tau 0.75": VSLoss(counts, 0.1, 0.75),
        "gamma 0.15, tau 1": VSLoss(counts, 0.15, 1.0),
        "gamma 0.3, tau 1": VSLoss(counts, 0.3, 1.0),
        "gamma 0.15, tau 0": VSLoss(counts, 0.15, 0.0),
        "logit adjustment, tau 1": LogitAdjustment(counts),
    }
    settings = LateDrop(epochs=EPOCHS, batch_size=32, lr=0.05, momentum=0.9, weight_decay=2e-4, seed=seed)
    values, rare = {}, {}
    for name, loss in losses.items():
        logits = fit(Run(perceptron(train, (128, 32)), train, loss=loss, settings=settings)).predict(test)
        values[name] = accuracy(logits, test.labels)
        rare[name] = rarest_accuracy(logits, test.labels, counts)
    return Measured(values, {RAREST: rare})
