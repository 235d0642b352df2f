"""Attacks beside torchattacks: the same network, budget, steps and queries; ours may turn no fewer inputs.

The networks are small CNNs for digits, one trained as usual and one by PGD. torchattacks attacks inputs that are
misclassified already too, and does not stop early in PGD; its Square and APGD do.
"""

from functools import partial

import torch
import torchattacks
from torch import Tensor, nn

from timing import Row, side_by_side
from weathered import (
    PGD,
    APGDCrossEntropy,
    APGDTargeted,
    AttackEnsemble,
    Run,
    Settings,
    Square,
    build_model,
    fit,
    load_pair,
)
from weathered.procedures.pgd_training import PGDTraining

EPSILON, STEPS, QUERIES, TARGETS = 0.1, 10, 200, 9
IMAGES = 200
TOLERANCE = 0.005
"""How much higher our robust accuracy may be."""


def rows() -> list[Row]:
    train, test = load_pair("digits")
    x, y = test.floats(torch.arange(IMAGES)), test.labels[:IMAGES]
    found = []
    for name, procedure in (("plain", None), ("PGD-trained", PGDTraining(EPSILON, steps=5))):
        run = Run(build_model("cnn_small:width=16", train), train, procedure=procedure, settings=Settings(epochs=8))
        model = fit(run).model.eval()
        for what, ours, theirs in _pairs(model):
            right = [float((model(attack(x, y)).argmax(1) == y).double().mean()) for attack in (ours, theirs)]
            assert right[0] <= right[1] + TOLERANCE, f"{what}, {name}: {right[0]:.3f} against {right[1]:.3f}"
            label = f"{what}, {IMAGES} digits, {name} CNN, right {right[0]:.3f} and {right[1]:.3f}"
            pair = partial(ours, x, y), partial(theirs, x, y)
            found.append(side_by_side(label, "torchattacks", *pair, 1.0, repeats=3, warmup=0))
    return found


def _pairs(model: nn.Module):
    def ours(attack):
        def run(x: Tensor, y: Tensor) -> Tensor:
            return attack(model, x, y, torch.Generator().manual_seed(0))

        return run

    size = 2.5 * EPSILON / 10
    yield (
        "PGD, 10 steps from the image",
        ours(PGD(EPSILON, steps=10, step_size=size, random_start=False)),
        torchattacks.PGD(model, eps=EPSILON, alpha=size, steps=10, random_start=False),
    )
    yield (
        f"Ensemble of APGD-CE and APGD-T, {STEPS} steps, and Square, {QUERIES} queries",
        ours(
            AttackEnsemble(
                [
                    APGDCrossEntropy(EPSILON, steps=STEPS),
                    APGDTargeted(EPSILON, steps=STEPS, targets=TARGETS),
                    Square(EPSILON, queries=QUERIES),
                ]
            )
        ),
        torchattacks.MultiAttack(
            [
                torchattacks.APGD(model, eps=EPSILON, steps=STEPS),
                torchattacks.APGDT(model, eps=EPSILON, steps=STEPS, n_classes=10),
                torchattacks.Square(model, eps=EPSILON, n_queries=QUERIES),
            ]
        ),
    )
