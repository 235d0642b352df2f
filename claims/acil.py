"""Claim: recursive ridge regression forgets nothing, fine-tuning a linear head nearly all (ACIL, NeurIPS 2022)."""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import one_hot

from weathered.core.rng import generator
from weathered.incremental.acil import ACIL, random_expansion
from weathered.incremental.fine_tuned_head import FineTunedHead
from weathered.incremental.protocol import class_phases, run_incremental

SLUG = "acil"
SENTENCE = (
    "Learning classes phase by phase without stored samples, ACIL is more accurate on all classes after the last phase "
    "than a linear head fine-tuned on each phase."
)
DATA = "scikit-learn digits, 1200 train and 597 test images of 64 pixels, 5 phases of 2 classes in random order"
METRIC = "accuracy on all ten classes after the last phase, in [0, 1]"
BASELINE = "fine-tuned head"
MAIN = "acil"
ARMS = ("fine-tuned head", "acil", "joint ridge")

TRAIN = 1200
EXPANSION = 1024
GAMMA = 0.1


def measure(seed: int) -> dict[str, float]:
    """Last accuracy of each arm. The seed draws the split, the order of classes, the expansion and the row order."""
    pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    pixels = pixels / 16
    rows = torch.randperm(len(labels), generator=generator(seed, "claim", SLUG))
    train, test = rows[:TRAIN], rows[TRAIN:]
    phases = class_phases(10, base=0, phases=5, seed=seed)

    acil = ACIL(gamma=GAMMA, expansion=EXPANSION, seed=seed)
    recursive = run_incremental(
        acil, phases, (pixels[train], labels[train]), (pixels[test], labels[test]), batch_size=64
    )

    H, H_test = random_expansion(pixels[train], acil.V_), random_expansion(pixels[test], acil.V_)
    head = FineTunedHead(seed=seed)
    fine_tuned = run_incremental(head, phases, (H, labels[train]), (H_test, labels[test]))

    ridge = GAMMA * torch.eye(EXPANSION, dtype=H.dtype)
    joint = torch.linalg.solve(ridge + H.T @ H, H.T @ one_hot(labels[train], 10).to(H))
    hits = (H_test @ joint).argmax(1) == labels[test]
    return {
        "fine-tuned head": fine_tuned.last,
        "acil": recursive.last,
        "joint ridge": float(hits.double().mean()),
    }
