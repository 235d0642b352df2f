"""Claim: features augmented by what confusable classes show help rare classes (RISDA, AAAI 2022)."""

import warnings

import torch
from torch import Tensor, nn

from common import accuracy
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.network import TableNetwork, seeded
from weathered.procedures.risda import RISDA
from weathered.verification import Measured

SLUG = "risda"
SENTENCE = (
    "On features where each rare class lies beside a frequent one and varies as that does, a linear classifier trained "
    "late on augmentations borrowed from confused classes is more accurate on balanced data than one trained late with "
    "class weights alone."
)
DATA = (
    "Gaussian features of 10 dimensions made on the spot: 5 pairs of a class of 200 and a class of 3 training rows, "
    "whose means are 1.6 apart and whose covariances are equal; 300 test rows of each class"
)
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "class weights"
MAIN = "alpha 0.25, beta 0.5"
ARMS = (
    "class weights",
    "alpha 0.25, beta 0.5",
    "cross entropy",
    "own covariance, beta 1",
    "own covariance, beta 0.5",
    "alpha 0, beta 0.5",
    "alpha 0.25, beta 0",
    "alpha 0.5, beta 0",
    "alpha 0.5, beta 0.5",
)
HIGHER_IS_BETTER = True
SEEDS = 5
RARE = "accuracy on the rare classes, in [0, 1], higher is better"
FREQUENT = "accuracy on the frequent classes, in [0, 1], higher is better"
ALSO = (RARE, FREQUENT)

PAIRS, WIDTH, HEAD, TAIL, TEST = 5, 10, 200, 3, 300


def measure(seed: int) -> Measured:
    """Balanced accuracy of each arm. The seed draws the features, the weights and the order of the rows."""
    train, test = paired_classes(seed)
    settings = Settings(
        epochs=80, batch_size=50, lr=0.02, momentum=0.9, weight_decay=5e-4, schedule="constant", seed=seed
    )
    arms: dict[str, Procedure] = {
        "cross entropy": Procedure(),
        "class weights": RISDA(0.0, 0.0, head=0.5, start=0.5),
        "own covariance, beta 1": RISDA(0.0, 1.0, head=1.0, start=0.5),
        "own covariance, beta 0.5": RISDA(0.0, 0.5, head=1.0, start=0.5),
        "alpha 0, beta 0.5": RISDA(0.0, 0.5, head=0.5, start=0.5),
        "alpha 0.25, beta 0": RISDA(0.25, 0.0, head=0.5, start=0.5),
        "alpha 0.25, beta 0.5": RISDA(0.25, 0.5, head=0.5, start=0.5),
        "alpha 0.5, beta 0": RISDA(0.5, 0.0, head=0.5, start=0.5),
        "alpha 0.5, beta 0.5": RISDA(0.5, 0.5, head=0.5, start=0.5),
    }
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {RARE: {}, FREQUENT: {}}
    rare = test.labels >= PAIRS
    for name, procedure in arms.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits = fit(Run(linear, train, procedure=procedure, settings=settings)).predict(test)
        values[name] = accuracy(logits, test.labels)
        also[RARE][name] = accuracy(logits[rare], test.labels[rare])
        also[FREQUENT][name] = accuracy(logits[~rare], test.labels[~rare])
    return Measured(values, also)


def paired_classes(seed: int) -> tuple[Dataset, Dataset]:
    """What `DATA` says: class k + 5 is the rare one beside class k."""
    rng = generator(seed, "claim", SLUG)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng)

    centre = 2 * draw(PAIRS, WIDTH)
    beside = centre + 1.6 * nn.functional.normalize(draw(PAIRS, WIDTH), dim=1)
    directions = nn.functional.normalize(draw(PAIRS, 2, WIDTH), dim=2)

    def rows(frequent: int, rare: int, name: str) -> Dataset:
        counts = torch.tensor([frequent] * PAIRS + [rare] * PAIRS)
        labels = torch.arange(2 * PAIRS).repeat_interleave(counts)
        along = 1.5 * draw(len(labels), 1, 2) @ directions[labels % PAIRS]
        return Dataset.of(
            torch.cat([centre, beside])[labels] + 0.4 * draw(len(labels), WIDTH) + along[:, 0], labels, name=name
        )

    return rows(HEAD, TAIL, "pairs of classes"), rows(TEST, TEST, "pairs of classes, test")


class Given(nn.Module):
    """Features that are the inputs."""

    num_features = WIDTH

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x


def linear(seed: int) -> TableNetwork:
    """A linear classifier of the inputs as they are."""
    with seeded(seed):
        return TableNetwork(Given(), nn.Linear(WIDTH, 2 * PAIRS), torch.zeros(WIDTH), torch.ones(WIDTH))
