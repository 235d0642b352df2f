"""Claim: mixtures with rare classes, and the class prior out of the logits, lift accuracy (UniMix, NeurIPS 2021)."""

from common import LONG_TAIL, RAREST, LateDrop, accuracy, long_tailed_digits, perceptron, rarest_accuracy
from weathered.audit.calibration import expected_calibration_error
from weathered.audit.per_sample import per_sample
from weathered.core.fit import fit
from weathered.core.roles import Loss, Transform
from weathered.core.run import Run
from weathered.losses.bayias import Bayias
from weathered.losses.cross_entropy import CrossEntropy
from weathered.mixing.mixup import MixUp
from weathered.mixing.unimix import UniMix
from weathered.verification import Measured

SLUG = "unimix-bayias"
SENTENCE = (
    "Trained on classes whose sizes differ by a factor of 50, a network that is given mixtures with partners of rare "
    "classes and logits without the class prior is more accurate on balanced data than one trained with cross entropy."
)
DATA = f"{LONG_TAIL}; arms with mixing mix in every step to the end of training"
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "unimix and bayias"
ARMS = (
    "cross entropy",
    "mixup",
    "unimix with cross entropy",
    "bayias",
    "mixup with bayias",
    "unimix and bayias",
)
HIGHER_IS_BETTER = True
SEEDS = 8
BINS = 15
CALIBRATION = f"expected calibration error on the test set, {BINS} bins of equal width, in [0, 1], lower is better"
ALSO = (RAREST, CALIBRATION)

EPOCHS = 60


def measure(seed: int) -> Measured:
    """Balanced accuracy of each arm. The seed draws sizes, images, noise, weights, mixtures and the order of rows."""
    counts, train, _, test = long_tailed_digits(SLUG, seed)
    # alpha and tau are those of the authors for CIFAR-10; mixup has one share for each batch, from Beta(1, 1)
    arms: dict[str, tuple[list[Transform], Loss]] = {
        "cross entropy": ([], CrossEntropy()),
        "mixup": ([MixUp(1.0)], CrossEntropy()),
        "unimix with cross entropy": ([UniMix(counts, 0.8, -0.5)], CrossEntropy()),
        "bayias": ([], Bayias(counts)),
        "mixup with bayias": ([MixUp(1.0)], Bayias(counts)),
        "unimix and bayias": ([UniMix(counts, 0.8, -0.5)], Bayias(counts)),
    }
    settings = LateDrop(epochs=EPOCHS, batch_size=32, lr=0.05, momentum=0.9, weight_decay=2e-4, seed=seed)
    values, rare, calibration = {}, {}, {}
    for name, (transforms, loss) in arms.items():
        run = Run(perceptron(train, (128, 32)), train, loss=loss, transforms=transforms, settings=settings)
        logits = fit(run).predict(test)
        values[name] = accuracy(logits, test.labels)
        rare[name] = rarest_accuracy(logits, test.labels, counts)
        samples = per_sample(logits, test.labels)
        calibration[name] = expected_calibration_error(samples.confidence, samples.correct, BINS)
    return Measured(values, {RAREST: rare, CALIBRATION: calibration})
