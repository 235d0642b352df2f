"""Claim: learning where to search saves queries of an attack on video clips (AstFocus, TPAMI 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from common import accuracy
from weathered.attacks.astfocus import AstFocus
from weathered.attacks.nes import NES
from weathered.attacks.random_focus import RandomFocus
from weathered.attacks.score_based import ScoreAttack
from weathered.core.fit import fit
from weathered.core.rng import derive_seed, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.sources.load import load
from weathered.nn.build import build_model
from weathered.verification import Measured

SLUG = "astfocus"
SENTENCE = (
    "In frames and squares that two agents learn to choose, a black-box attack on video clips needs fewer queries than "
    "in frames and squares drawn at random."
)
DATA = (
    "generated clips of 16 frames of 24x24 with one of four textures in 5 frames; 480 train a small network, the first "
    "16 of 160 others that it gets right are attacked, within 0.1 in Linf, with at most 3000 queries"
)
METRIC = "queries for each clip, mean over the 16, failures counted with what they spent"
BASELINE = "random focus"
MAIN = "astfocus"
MOST, ALL = "random focus, always 10 frames", "nes on all pixels"
ARMS = (BASELINE, MAIN, MOST, ALL)
HIGHER_IS_BETTER = False
RATE = "share of the attacked clips that the network then gets wrong, in [0, 1]"
CHANGE = "mean absolute change of the attacked clips, of 255"
ACCURACY = "accuracy of the network on the 160 clips, in [0, 1], the same for all arms"
ALSO = (RATE, CHANGE, ACCURACY)

TRAIN, TEST, ATTACKED = 480, 160, 16
SETTINGS = Settings(epochs=12, batch_size=32, lr=1e-2, optimizer="adam", weight_decay=0.0)
BUDGET = partial(dict, epsilon=0.1, queries=3000, samples=20)
SQUARES = partial(dict, patch=9, grid=4)
ATTACKS: Mapping[str, ScoreAttack] = {
    BASELINE: RandomFocus(**BUDGET(), **SQUARES()),
    # 32 units in place of 512, for frames of 576 pixels in place of 12,544, and 3 epochs in place of 10, for time
    MAIN: AstFocus(**BUDGET(), **SQUARES(), hidden=32, epochs=3),
    # the agent of the frames is rewarded for 10 of them, which alone may save queries
    MOST: RandomFocus(**BUDGET(), **SQUARES(), frames=(10, 10)),
    ALL: NES(**BUDGET()),
}


def measure(seed: int) -> Measured:
    """All figures of each arm. The seed draws the split, the weights, the order and the attacks."""
    clips = load(f"clips:{TRAIN + TEST}")
    rows = torch.randperm(len(clips), generator=generator(seed, "claim", SLUG))
    train, test = clips.select(rows[:TRAIN]), clips.select(rows[TRAIN:])
    run = fit(Run(partial(_network, train), train, settings=replace(SETTINGS, seed=seed)))
    logits = run.predict(test)
    right = (logits.argmax(1) == test.labels).nonzero()[:, 0][:ATTACKED]
    x, y = test.floats(right), test.labels[right]
    values: dict[str, float] = {}
    also: dict[str, dict[str, float]] = {name: {} for name in ALSO}
    for arm, attack in ATTACKS.items():
        found = attack.run(run.model, x, y, generator(seed, SLUG, "attack"))
        values[arm] = float(found.queries.double().mean())
        also[RATE][arm] = float(found.success.double().mean())
        also[CHANGE][arm] = float(found.perturbation.mean())
        also[ACCURACY][arm] = accuracy(logits, test.labels)
    return Measured(values, also)


def _network(train: Dataset, seed: int) -> torch.nn.Module:
    return build_model("clip-cnn", train, seed=derive_seed(seed, SLUG))
