"""Claim: a trigger that follows the distilling survives it, one that was stamped once does not (NDSS 2023)."""

import torch

from common import accuracy, split_digits
from weathered.core.fit import fit
from weathered.core.predict import predict_logits
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.patch import Patch
from weathered.nn.build import build_model
from weathered.procedures.dd_backdoor import BackdooredDistillation
from weathered.verification import Measured

SLUG = "dd-backdoor"
SENTENCE = (
    "In data distilled by gradient matching, DOORPING without a clip makes more stamped images be taken for the target "
    "class than stamping once does."
)
DATA = "scikit-learn digits, 1297 train and 500 test images, 5 % of the training rows poisoned"
METRIC = "attack success on test images of other classes than the target, in [0, 1], mean of 3 networks"
BASELINE = "naive"
MAIN = "doorping"
ARMS = ("none", "naive", "doorping", "doorping, clipped to [0, 1]")
HIGHER_IS_BETTER = True
ALSO = (
    "accuracy without the trigger, in [0, 1]",
    "share of the same images taken for the target without the trigger, in [0, 1]",
    "attack success counting images of the target class, in [0, 1]",
    "largest distance of a pixel of the trigger from 0",
)

TRAIN, TARGET, NETWORKS, ITERATIONS, OUTER = 1297, 0, 3, 40, 5
SETTINGS = {
    "epochs": ITERATIONS * OUTER, "batch_size": TRAIN, "lr": 0.1, "momentum": 0.5, "weight_decay": 0.0,
    "schedule": "constant", "evaluations": 0,
}  # fmt: skip
OPTIONS = {
    "images_per_class": 5, "outer": OUTER, "inner": 10, "network_lr": 0.05, "network_epochs": 300,
    "trigger_steps": 60, "portion": 0.05, "target": TARGET,
}  # fmt: skip


def stamped(test: Dataset, patch: Patch) -> Dataset:
    """The test images with the patch, as floats, which it may leave the range of bytes in."""
    images = patch.stamp(test.floats(torch.arange(len(test))))
    return test.replace(inputs=type(test.inputs)(images))  # pyright: ignore[reportCallIssue]


def measure(seed: int) -> Measured:
    """Attack success of each arm, which differ in the attack and its clip alone; batches hold all training rows.

    The seed draws the split, the poisoned rows, the first trigger, the synthetic images and all networks. The arm
    without an attack is asked about a white patch.
    """
    train, test = split_digits(SLUG, seed, TRAIN)
    others = test.labels != TARGET
    values, also = {}, {name: {} for name in ALSO}
    for arm in ARMS:
        procedure = BackdooredDistillation(attack=arm.partition(",")[0], clip=arm.endswith("]"), **OPTIONS)  # pyright: ignore[reportArgumentType]
        run = Run(
            lambda draw: build_model("mlp:width=64", train, seed=draw), train,
            procedure=procedure, settings=Settings(seed=seed, **SETTINGS),
        )  # fmt: skip
        fit(run)
        asked = stamped(test, procedure.trigger)
        found = []
        for number in range(NETWORKS):
            network = procedure.fresh_network(run, f"judge {number}")
            plain, marked = predict_logits(network, test), predict_logits(network, asked)
            taken = [(logits.argmax(1) == TARGET).double() for logits in (marked, plain)]
            found.append(
                [
                    float(taken[0][others].mean()),
                    accuracy(plain, test.labels),
                    float(taken[1][others].mean()),
                    float(taken[0].mean()),
                ]
            )
        means = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
        values[arm] = means[0]
        for name, value in zip(ALSO, [*means[1:], float(procedure.trigger.pattern.abs().max())], strict=True):
            also[name][arm] = value
    return Measured(values, also)
