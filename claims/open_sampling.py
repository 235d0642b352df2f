"""Claim: images of no class, labelled in favour of rare classes, re-balance a long tail (Open-sampling, ICML 2022)."""

import torch
from torch import Tensor

from common import perceptron
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import derive_seed, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.procedures.odnl import ODNL
from weathered.procedures.open_sampling import OpenSampling
from weathered.procedures.supervised import Supervised

SLUG = "open-sampling"
SENTENCE = (
    "Trained on classes whose sizes differ by a factor of 100, a network that also sees points of no class under "
    "labels drawn against the class sizes is more accurate on balanced data than one trained with cross entropy."
)
DATA = (
    "six Gaussian classes in 8 dimensions, unit covariance, means of length 3, 1000 to 10 train points, 500 test "
    "points of each class; 20000 auxiliary points of a Gaussian of deviation 1.5"
)
METRIC = "accuracy on the balanced test set after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "open-sampling"
ARMS = ("cross entropy", "open-sampling", "uniform labels (odnl)")
HIGHER_IS_BETTER = True
SEEDS = 6

COUNTS = torch.tensor([1000, 398, 158, 63, 25, 10])
WIDTH, TEST, AUXILIARY = 8, 500, 20_000


def points(means: Tensor, counts: Tensor, rng: torch.Generator) -> Dataset:
    """Rows around the mean of their class, `counts` of each."""
    labels = torch.arange(len(means)).repeat_interleave(counts)
    return Dataset.of(means[labels] + torch.randn(len(labels), WIDTH, generator=rng), labels, name="Gaussian classes")


def measure(seed: int) -> dict[str, float]:
    """Balanced accuracy of each arm. The seed draws means, points, weights, labels and the order of the rows."""
    rng = generator(seed, "claim", SLUG)
    directions = torch.randn(len(COUNTS), WIDTH, generator=rng)
    means = 3 * directions / directions.norm(dim=1, keepdim=True)
    train, test = (points(means, counts, rng) for counts in (COUNTS, torch.full_like(COUNTS, TEST)))
    strange = 1.5 * torch.randn(AUXILIARY, WIDTH, generator=generator(derive_seed(seed, SLUG), "auxiliary"))
    aux = {"ood": Dataset.of(strange, torch.zeros(AUXILIARY), ("none",))}
    arms: dict[str, Procedure] = {
        "cross entropy": Supervised(),
        "open-sampling": OpenSampling(COUNTS, eta=1.0, aux_batch=512),
        "uniform labels (odnl)": ODNL(eta=1.0, aux_batch=512),
    }
    settings = Settings(epochs=60, batch_size=128, lr=0.05, weight_decay=2e-4, seed=seed)
    values = {}
    for name, procedure in arms.items():
        run = fit(Run(perceptron(train, (64, 64)), train, aux=aux, procedure=procedure, settings=settings))
        values[name] = float((run.predict(test).argmax(1) == test.labels).double().mean())
    return values
