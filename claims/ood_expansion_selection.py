"""Claim: accuracy less variation of features picks a model that holds in a new domain (Ye et al., NeurIPS 2021)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weathered.core.rng import derive_seed, generator
from weathered.data.sources.domains import FEATURES, TEST, TRAINING, draw_domains
from weathered.nn.network import seeded
from weathered.selection.laws import equal_cells
from weathered.selection.of_runs import mean_accuracy
from weathered.selection.ood_expansion_selection import Choice, ExpansionSelection, Scaling
from weathered.verification import Measured

SLUG = "ood-expansion-selection"
SENTENCE = (
    "Among 22 networks that see spurious features at different strengths, validation accuracy less a penalty on how "
    "much informative features vary between training domains picks one that is more accurate in a new domain than the "
    "one of best validation accuracy."
)
DATA = (
    "generated domains of 800 samples, three to train on and one to test; three features say the same of the label in "
    "each, three say less of it in each and the opposite in the test domain; a fifth of the training domains is held "
    "out; perceptrons with one hidden layer of 16 units, spurious inputs times 0, 0.1, ..., 1, two networks of each"
)
METRIC = "accuracy in the test domain of the network picked, in [0, 1]"
BASELINE = "best validation accuracy"
MAIN = "accuracy - r0 variation"
GLOBAL = "the same with one scale for all features"
BEST = "best in the test domain, which no rule may know"
MEAN = "mean of all networks"
ARMS = (BASELINE, MAIN, GLOBAL, MEAN, BEST)
HIGHER_IS_BETTER = True
SEEDS = 5
HELD = "accuracy on held-out samples of the training domains of the network picked, in [0, 1]"
VARIES = "variation between training domains of the informative features of the network picked, in [0, 1]"
STRENGTH = "by what the spurious inputs of the network picked are multiplied, in [0, 1]"
ALSO = (HELD, VARIES, STRENGTH)

SAMPLES, HIDDEN, STEPS, RATE = 800, 16, 300, 0.01
STRENGTHS = tuple(k / 10 for k in range(11)) * 2


class Pool(NamedTuple):
    """What is known of M networks.

    features: of the training samples, (M, N, 16). held, test (M,): accuracy in the training and in the test domain.
    """

    features: Tensor
    labels: Tensor
    domains: Tensor
    held: np.ndarray
    test: np.ndarray


def measure(seed: int) -> Measured:
    """Test accuracy of the network that each rule picks; the seed draws data, split, weights and compared samples."""
    pool = trained(seed)
    rows = equal_cells(pool.labels, pool.domains, 50, generator(seed, SLUG, "cells"))
    choices, variations = {}, {}
    for arm, scaling in ((MAIN, "feature"), (GLOBAL, "global")):
        choices[arm], variations[arm] = choose(pool, rows, scaling)
    picked = {BASELINE: choices[MAIN].most_accurate, **{arm: choice.chosen for arm, choice in choices.items()}}
    picked[BEST] = int(pool.test.argmax())

    def of(values: np.ndarray) -> dict[str, float]:
        found = {arm: float(values[i]) for arm, i in picked.items()}
        return {arm: float(np.nanmean(values)) if arm == MEAN else found[arm] for arm in ARMS}

    also = {HELD: of(pool.held), VARIES: of(variations[MAIN]), STRENGTH: of(np.array(STRENGTHS))}
    return Measured(of(pool.test), also)


def choose(pool: Pool, rows: Tensor, scaling: Scaling) -> tuple[Choice, np.ndarray]:
    """The choice with the paper's threshold and window, and the variation (M,) of each network."""
    selection = ExpansionSelection(delta=0.3, window=0.1, scaling=scaling)
    measured = [selection.measure(own[rows], pool.labels[rows], pool.domains[rows]) for own in pool.features]
    return selection.choose(pool.held, measured), np.array([found.mean_variation for found in measured])


def trained(seed: int) -> Pool:
    """Networks trained side by side by Adam on all training samples at once; their losses are added."""
    x, y, e = draw_domains(SAMPLES, TRAINING, generator(seed, SLUG, "training domains"))
    unseen, truth, _ = draw_domains(SAMPLES, TEST, generator(seed, SLUG, "test domain"))
    # a fifth of each domain
    shuffled = torch.rand(len(TRAINING), SAMPLES, generator=generator(seed, SLUG, "split")).argsort(1)
    held = (shuffled < SAMPLES // 5).flatten()
    with seeded(derive_seed(seed, SLUG, "models")):
        layers = [(nn.Linear(2 * FEATURES, HIDDEN), nn.Linear(HIDDEN, 2)) for _ in STRENGTHS]
    weights = [torch.stack([pair[i].weight.detach().T for pair in layers]).requires_grad_() for i in (0, 1)]
    biases = [torch.stack([pair[i].bias.detach()[None] for pair in layers]).requires_grad_() for i in (0, 1)]
    scale = torch.ones(len(STRENGTHS), 1, 2 * FEATURES)
    scale[:, 0, FEATURES:] = torch.tensor(STRENGTHS)[:, None]

    def hidden(inputs: Tensor) -> Tensor:
        return torch.baddbmm(biases[0], inputs * scale, weights[0]).relu()

    def logits(features: Tensor) -> Tensor:
        return torch.baddbmm(biases[1], features, weights[1])

    optimizer = torch.optim.Adam([*weights, *biases], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = logits(hidden(x[~held]))
        (cross_entropy(found.flatten(0, 1), y[~held].repeat(len(STRENGTHS))) * len(STRENGTHS)).backward()
        optimizer.step()
    with torch.no_grad():
        seen, strange = logits(hidden(x[held])), logits(hidden(unseen))
        features = hidden(x[~held])
    inside = [mean_accuracy(own, y[held], e[held]) for own in seen]
    outside = [float((own.argmax(1) == truth).double().mean()) for own in strange]
    return Pool(features, y[~held], e[~held], np.array(inside), np.array(outside))
