"""Claim: logits of one norm in training let unknown inputs stand out (LogitNorm, ICML 2022)."""

from dataclasses import replace

import torch

from common import accuracy, perceptron
from weathered.audit.ood_metrics import fpr_at_id_acceptance
from weathered.audit.ood_sets import synthetic_ood_sets
from weathered.core.fit import fit
from weathered.core.rng import derive_seed, generator
from weathered.core.roles import Loss
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.auxiliary import load_auxiliary
from weathered.data.dataset import Dataset
from weathered.data.sources.load import load
from weathered.losses.cross_entropy import CrossEntropy
from weathered.losses.logitnorm import LogitNorm
from weathered.scores.msp import msp_score
from weathered.verification import Measured

SLUG = "logitnorm"
SENTENCE = (
    "A network trained on eight digits with cross entropy on logits of norm 1 takes fewer images of the two other "
    "digits for known ones than a network trained with cross entropy, by the largest probability of the raw logits."
)
DATA = (
    "scikit-learn digits: 960 train images of 0 to 7, their other 483 images as known, all 354 images of 8 and 9 as "
    "unknown; beside it 483 photograph patches, shuffled images and images of uniform noise as unknown"
)
METRIC = "share of the images of 8 and 9 accepted where 95 % of the known ones are, in [0, 1]"
BASELINE = "cross entropy"
MAIN = "tau 1"
ARMS = ("cross entropy", "tau 1", "tau 0.2", "tau 0.1", "tau 0.04")
HIGHER_IS_BETTER = False
FAR = {
    kind: f"share of the {kind} accepted where 95 % of the known images are, in [0, 1], lower is better"
    for kind in ("photograph patches", "shuffled images", "images of noise")
}
ACCURACY = "accuracy on the known test images, in [0, 1], higher is better"
NORM = "mean norm of the logits of the known test images"
ALSO = (*FAR.values(), ACCURACY, NORM)

KNOWN, TRAIN = 8, 960
SETTINGS = Settings(epochs=60, batch_size=50, lr=0.05, momentum=0.9, weight_decay=5e-4, schedule="cosine")


def measure(seed: int) -> Measured:
    """Shares of unknown images that pass, for each arm. The seed draws split, outliers, weights and order."""
    train, test, near = split(seed)
    synthetic = synthetic_ood_sets(test, derive_seed(seed, SLUG, "outliers"))
    patches = load_auxiliary(f"patches:size={len(test)}", test, derive_seed(seed, SLUG, "patches"))
    far = dict(
        zip(
            FAR.values(),
            (patches, synthetic["shuffled pixels (synthetic)"], synthetic["uniform noise (synthetic)"]),
            strict=True,
        )
    )
    losses: dict[str, Loss] = {
        "cross entropy": CrossEntropy(),
        **{f"tau {tau:g}": LogitNorm(tau) for tau in (1.0, 0.2, 0.1, 0.04)},
    }
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {name: {} for name in ALSO}
    for arm, loss in losses.items():
        run = fit(Run(perceptron(train, (256, 256)), train, loss=loss, settings=replace(SETTINGS, seed=seed)))
        logits = run.predict(test)
        known = msp_score(logits)
        values[arm] = fpr_at_id_acceptance(known, msp_score(run.predict(near))).value
        for name, outliers in far.items():
            also[name][arm] = fpr_at_id_acceptance(known, msp_score(run.predict(outliers))).value
        also[ACCURACY][arm] = accuracy(logits, test.labels)
        also[NORM][arm] = float(logits.norm(dim=1).mean())
    return Measured(values, also)


def split(seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Train images of the known digits, their other images, and all images of the unknown digits."""
    digits = load("digits")
    rows = torch.randperm(len(digits), generator=generator(seed, "claim", SLUG))
    known = rows[digits.labels[rows] < KNOWN]
    unknown = rows[digits.labels[rows] >= KNOWN]
    return digits.select(known[:TRAIN]), digits.select(known[TRAIN:]), digits.select(unknown)
