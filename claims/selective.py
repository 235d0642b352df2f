"""Claim: a network that learns to abstain knows which of its decisions to leave out (Self-Adaptive Training)."""

import torch

from common import perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.predict import eval_mode
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.procedures.selective_classification import SelectiveClassification, risk_at
from weathered.procedures.supervised import Supervised

SLUG = "selective"
SENTENCE = (
    "A network trained to abstain errs less on the four fifths of the test images that it rejects least than on all "
    "of them."
)
DATA = "scikit-learn digits, 1000 train images with their right labels, 797 test images"
METRIC = "share of wrong decisions among the test images that are kept, in [0, 1]"
BASELINE = "selective, all images"
MAIN = "selective, 80 % kept"
ARMS = (
    "selective, all images",
    "selective, 80 % kept",
    "cross entropy, all images",
    "cross entropy, 80 % kept by largest probability",
)
HIGHER_IS_BETTER = False

TRAIN, KEPT = 1000, 0.8


def measure(seed: int) -> dict[str, float]:
    """Error of each arm. The seed draws the split, the weights and the order of the rows."""
    train, test = split_digits(SLUG, seed, TRAIN)
    settings = Settings(epochs=100, batch_size=50, lr=0.1, momentum=0.9, weight_decay=5e-4, seed=seed)
    model = perceptron(train, (512, 512))
    procedure = SelectiveClassification(0.5)
    selective = fit(Run(model, train, procedure=procedure, settings=settings))
    network = procedure.predictor(selective)
    with torch.no_grad(), eval_mode(network):
        rejection = network.rejection_score(test.floats(torch.arange(len(test))))
    wrong = selective.predict(test).argmax(1) != test.labels

    plain = fit(Run(model, train, procedure=Supervised(), settings=settings)).predict(test)
    plain_wrong, doubt = plain.argmax(1) != test.labels, 1 - plain.softmax(1).amax(1)
    errors = (
        risk_at(rejection, wrong, 1.0),
        risk_at(rejection, wrong, KEPT),
        risk_at(doubt, plain_wrong, 1.0),
        risk_at(doubt, plain_wrong, KEPT),
    )
    return dict(zip(ARMS, errors, strict=True))
