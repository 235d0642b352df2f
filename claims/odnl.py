"""Claim: images of no class under fresh random labels slow the memorising of wrong labels (ODNL, NeurIPS 2021)."""

from common import MEMORISED, accuracy, memorised, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import derive_seed, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.auxiliary import load_auxiliary
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.procedures.odnl import ODNL
from weathered.procedures.supervised import Supervised
from weathered.verification import Measured

SLUG = "odnl"
SENTENCE = (
    "With half of the training labels wrong, a network that also sees image patches of no class under fresh random "
    "labels is more accurate at the end of training than one trained with cross entropy alone."
)
DATA = (
    "scikit-learn digits, 1000 train images with 50 % symmetric label noise, 797 clean test images; 2000 grey patches "
    "of scikit-learn's two sample photographs as auxiliary images"
)
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "odnl, eta 5"
ARMS = ("cross entropy", "odnl, eta 1", "odnl, eta 2.5", "odnl, eta 5")
HIGHER_IS_BETTER = True
ALSO = (MEMORISED,)

TRAIN, NOISE = 1000, 0.5


def measure(seed: int) -> Measured:
    """Last test accuracy of each arm. The seed draws the split, the noise, the patches, the weights and the order."""
    clean, test = split_digits(SLUG, seed, TRAIN)
    train = SymmetricNoise(NOISE)(clean, generator(seed, "noise", SLUG))
    aux = {"ood": load_auxiliary("patches:size=2000", train, derive_seed(seed, SLUG, "patches"))}
    procedures: dict[str, Procedure] = {
        "cross entropy": Supervised(),
        **{f"odnl, eta {eta:g}": ODNL(eta, aux_batch=100) for eta in (1.0, 2.5, 5.0)},
    }
    settings = Settings(epochs=60, batch_size=100, lr=0.1, weight_decay=5e-4, seed=seed)
    values, learned_by_heart = {}, {}
    for name, procedure in procedures.items():
        run = fit(Run(perceptron(train, (256, 256)), train, aux=aux, procedure=procedure, settings=settings))
        values[name] = accuracy(run.predict(test), test.labels)
        learned_by_heart[name] = memorised(run.predict(train), train)
    return Measured(values, {MEMORISED: learned_by_heart})
