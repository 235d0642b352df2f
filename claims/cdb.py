"""Claim: weights by the errors on validation data lift rare classes (CDB, IJCV 2022)."""

import torch

from common import LONG_TAIL, RAREST, LateDrop, accuracy, long_tailed_digits, perceptron, rarest_accuracy
from weathered.core.fit import fit
from weathered.core.roles import Reweight, Sampler
from weathered.core.run import Run
from weathered.data.dataset import Dataset
from weathered.verification import Measured
from weathered.weighting.cdb import CDB
from weathered.weighting.cdb_sampling import CDBSampling

SLUG = "cdb"
SENTENCE = (
    "Trained on classes whose sizes differ by a factor of 50, a network whose classes weigh by their present errors on "
    "100 validation images is more accurate on balanced data than one trained with cross entropy."
)
DATA = f"{LONG_TAIL}, 10 validation images of each class that cross entropy does not see unless the arm says so"
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "dynamic"
ARMS = ("cross entropy", "cross entropy, validation images trained on too", "tau 1", "dynamic", "tau 2", "sampler")
HIGHER_IS_BETTER = True
SEEDS = 8
ALSO = (RAREST,)

EPOCHS = 60
VALIDATION = 10


def measure(seed: int) -> Measured:
    """Balanced accuracy of each arm. The seed draws sizes, images, noise, weights and the order of the rows."""
    counts, train, validation, test = long_tailed_digits(SLUG, seed, VALIDATION)
    assert validation is not None
    arms: dict[str, tuple[Dataset, Reweight | None, Sampler | None]] = {
        "cross entropy": (train, None, None),
        "cross entropy, validation images trained on too": (joined(train, validation), None, None),
        "tau 1": (train, CDB(10, 1.0), None),
        "dynamic": (train, CDB(10), None),
        "tau 2": (train, CDB(10, 2.0), None),
        "sampler": (train, None, CDBSampling(10)),
    }
    settings = LateDrop(epochs=EPOCHS, batch_size=32, lr=0.05, momentum=0.9, weight_decay=2e-4, seed=seed)
    values, rare = {}, {}
    for name, (data, reweight, sampler) in arms.items():
        model = perceptron(data, (128, 32))
        run = Run(model, data, reweight=reweight, sampler=sampler, validation=validation, settings=settings)
        logits = fit(run).predict(test)
        values[name] = accuracy(logits, test.labels)
        rare[name] = rarest_accuracy(logits, test.labels, counts)
    return Measured(values, {RAREST: rare})


def joined(one: Dataset, other: Dataset) -> Dataset:
    """The rows of both."""
    rows = [data.floats(torch.arange(len(data))) for data in (one, other)]
    return Dataset.of(torch.cat(rows), torch.cat([one.labels, other.labels]), one.class_names, name=one.name)
