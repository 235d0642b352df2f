"""Claim: outliers made from the training images teach a network what is strange (CnC, ECML-PKDD 2022)."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from common import accuracy
from weathered.audit.ood_metrics import auroc
from weathered.audit.ood_sets import synthetic_ood_sets
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.rng import derive_seed, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.auxiliary import load_auxiliary
from weathered.data.corruptions import CORRUPTIONS, corrupt_each
from weathered.data.dataset import Dataset, MemoryInputs
from weathered.data.sources.load import load
from weathered.nn.network import Network, assemble, seeded
from weathered.procedures.cnc_ood import CnC
from weathered.procedures.supervised import Supervised
from weathered.scores.extract import extract
from weathered.scores.msp import msp_score
from weathered.scores.outlier_class import outlier_log_odds
from weathered.verification import Measured

SLUG = "cnc-ood"
SENTENCE = (
    "A network that learns its training images, pasted by CutMix and corrupted, as one more class recognises images "
    "far from digits better by the log-odds of that class than a network without it by its largest probability."
)
DATA = (
    "scikit-learn digits enlarged to 16x16: 700 train images of 0 to 5 and their other 383 as known; unknown are as "
    "many images of uniform noise, smooth blobs, inverted known ones and known ones with their 4x4 patches shuffled"
)
METRIC = "AUROC against the known test images, mean over the four kinds of far images, in [0, 1]"
BASELINE = "largest probability, no outliers"
MAIN = "cnc"
MODES: Mapping[str, Procedure] = {
    "cutmix alone": CnC(mode="cutmix"),
    "corruption alone": CnC(mode="corruption"),
    "cnc": CnC(),
    "cnc, other classes, lam 0.2 to 0.8": CnC(different_class=True, lam_low=0.2, lam_high=0.8),
}
BY_MSP = "cnc, largest probability"
ARMS = (BASELINE, *MODES, BY_MSP)
HIGHER_IS_BETTER = True
KINDS = ("noise", "blobs", "inverted", "shuffled")
OF_KIND = {kind: f"AUROC of {kind} images, in [0, 1], higher is better" for kind in KINDS}
NEAR = "AUROC of digits 6 to 9, in [0, 1], higher is better"
ACCURACY = "accuracy on the known test images over the six classes, in [0, 1], higher is better"
REJECTING = "the same, where images rejected at odds of 1 count as wrong"
CORRUPTED = "accuracy over the six classes on corrupted known test images, in [0, 1], higher is better"
REJECTED = "share of the corrupted known test images rejected at odds of 1"
ALSO = (*OF_KIND.values(), NEAR, ACCURACY, REJECTING, CORRUPTED, REJECTED)

KNOWN, TRAIN, SIDE, PATCH = 6, 700, 16, 4
SETTINGS = Settings(epochs=25, batch_size=64, lr=2e-3, optimizer="adam", weight_decay=0.0, schedule="cosine")


def measure(seed: int) -> Measured:
    """All figures of each arm. The seed draws split, outliers, corruptions, weights and order."""
    train, test, near = split(seed)
    sets = {"near": near, **far_sets(test, seed), "known": test, "corrupted": corrupted(test, seed)}
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {name: {} for name in ALSO}
    for mode, procedure in {BASELINE: Supervised(), **MODES}.items():
        run = fit(Run(network(train, seed), train, procedure=procedure, settings=replace(SETTINGS, seed=seed)))
        evidence = {name: extract(procedure.predictor(run), data) for name, data in sets.items()}
        logits = {name: _there(found.logits) for name, found in evidence.items()}
        largest = {name: msp_score(z) for name, z in logits.items()}
        if mode == BASELINE:
            arms = {mode: largest}
        else:
            odds = {name: outlier_log_odds(logits[name], _there(e.outlier_logits)) for name, e in evidence.items()}
            arms = {mode: odds, **({BY_MSP: largest} if mode == MAIN else {})}
        right = logits["known"].argmax(1) == test.labels
        for arm, scores in arms.items():
            areas = {name: auroc(scores["known"], scores[name]).value for name in (*KINDS, "near")}
            values[arm] = sum(areas[kind] for kind in KINDS) / len(KINDS)
            for kind, name in OF_KIND.items():
                also[name][arm] = areas[kind]
            # the largest probability rejects nothing at odds of 1, as it has no odds
            rejects = arm in MODES
            accepted = scores["known"] < 0 if rejects else torch.ones_like(right)
            also[NEAR][arm] = areas["near"]
            also[ACCURACY][arm] = float(right.double().mean())
            also[REJECTING][arm] = float((right & accepted).double().mean())
            also[CORRUPTED][arm] = accuracy(logits["corrupted"], test.labels)
            also[REJECTED][arm] = float((scores["corrupted"] >= 0).double().mean()) if rejects else 0.0
    return Measured(values, also)


class Convolutions(nn.Module):
    """Three 3x3 convolutions of 16, 32 and 32 channels with batch normalisation, the image halved after the first two.

    x (B, 1, H, W); features (B, 32), the mean of each channel.
    """

    num_features = 32

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, last in ((1, 16, nn.MaxPool2d(2)), (16, 32, nn.MaxPool2d(2)), (32, 32, nn.Identity())):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), last]
        self.layers = nn.Sequential(*layers)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x.mean((2, 3))


def network(train: Dataset, seed: int) -> Network:
    """The network of every arm, with the same first weights in all."""
    with seeded(derive_seed(seed, SLUG, "weights")):
        return assemble(Convolutions(), train, "linear")


def split(seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Train images of the known digits, their other images, and all images of the unknown digits, 1x16x16."""
    digits = load("digits")
    x = interpolate(digits.floats(torch.arange(len(digits))), (SIDE, SIDE), mode="bilinear", align_corners=False)
    digits = digits.replace(inputs=MemoryInputs(_bytes(x)))
    rows = torch.randperm(len(digits), generator=generator(seed, "claim", SLUG))
    known, unknown = rows[digits.labels[rows] < KNOWN], rows[digits.labels[rows] >= KNOWN]
    names = digits.class_names[:KNOWN]
    parts = [digits.select(part).replace(class_names=names) for part in (known[:TRAIN], known[TRAIN:])]
    return parts[0], parts[1], digits.select(unknown)


def far_sets(test: Dataset, seed: int) -> dict[str, Dataset]:
    """As many images as in `test` of each kind that is far from digits."""
    synthetic = synthetic_ood_sets(test, derive_seed(seed, SLUG, "outliers"))
    x = test.inputs.fetch(torch.arange(len(test)))
    per_side = SIDE // PATCH
    cells = x.view(len(x), per_side, PATCH, per_side, PATCH).transpose(2, 3).reshape(len(x), -1, PATCH, PATCH)
    order = torch.rand(cells.shape[:2], generator=generator(seed, SLUG, "patches")).argsort(1)
    cells = cells[torch.arange(len(x))[:, None], order].view(len(x), per_side, per_side, PATCH, PATCH)
    return {
        "noise": synthetic["uniform noise (synthetic)"],
        "blobs": load_auxiliary(f"blobs:size={len(test)}", test, derive_seed(seed, SLUG, "blobs")),
        "inverted": synthetic["inverted images (synthetic)"],
        "shuffled": test.replace(inputs=MemoryInputs(cells.transpose(2, 3).reshape(x.shape).contiguous())),
    }


def corrupted(test: Dataset, seed: int) -> Dataset:
    """The test images, each under one of the fifteen corruptions at a severity of 1 to 5."""
    rng, size = generator(seed, SLUG, "corrupted"), len(test)
    kind, severity = (torch.randint(low, high, (size,), generator=rng) for low, high in ((0, len(CORRUPTIONS)), (1, 6)))
    x = corrupt_each(test.floats(torch.arange(size)), tuple(CORRUPTIONS), kind, severity, rng)
    return test.replace(inputs=MemoryInputs(_bytes(x)))


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


def _there(values: Tensor | None) -> Tensor:
    if values is None:
        raise ValueError("the network gives no such logits")
    return values
