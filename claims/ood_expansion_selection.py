"""Claim: accuracy less variation of features picks a model that holds in a new domain (Ye et al., NeurIPS 2021)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weathered.core.rng import derive_seed, generator
from weathered.core.settings import Settings
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
BY_ADAM = (
    "the metric where networks are trained by Adam, which makes up for the scale of inputs, so that all networks rely "
    "alike on what they see, in [0, 1]"
)
ALSO = (HELD, VARIES, STRENGTH, BY_ADAM)

SAMPLES, HIDDEN, ADAM_RATE = 800, 16, 0.01
STRENGTHS = tuple(k / 10 for k in range(11)) * 2
SETTINGS = Settings()


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
    values, also = picked(seed, adam=False)
    return Measured(values, {**also, BY_ADAM: picked(seed, adam=True)[0]})


def picked(seed: int, adam: bool) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Test accuracy by arm, and the same of other figures of the networks picked."""
    pool = trained(seed, adam)
    rows = equal_cells(pool.labels, pool.domains, 50, generator(seed, SLUG, "cells"))
    choices, variations = {}, {}
    scalings: dict[str, Scaling] = {MAIN: "feature", GLOBAL: "global"}
    for arm, scaling in scalings.items():
        choices[arm], variations[arm] = choose(pool, rows, scaling)
    places = {BASELINE: choices[MAIN].most_accurate, **{arm: choice.chosen for arm, choice in choices.items()}}
    places[BEST] = int(pool.test.argmax())

    def of(values: np.ndarray) -> dict[str, float]:
        return {arm: float(np.nanmean(values) if arm == MEAN else values[places[arm]]) for arm in ARMS}

    return of(pool.test), {HELD: of(pool.held), VARIES: of(variations[MAIN]), STRENGTH: of(np.array(STRENGTHS))}


def choose(pool: Pool, rows: Tensor, scaling: Scaling) -> tuple[Choice, np.ndarray]:
    """The choice with the paper's threshold and window, and the variation (M,) of each network."""
    selection = ExpansionSelection(delta=0.3, window=0.1, scaling=scaling)
    measured = [selection.measure(own[rows], pool.labels[rows], pool.domains[rows]) for own in pool.features]
    return selection.choose(pool.held, measured), np.array([found.mean_variation for found in measured])


def trained(seed: int, adam: bool) -> Pool:
    """Networks trained side by side with the default settings of runs, or by Adam; their losses are added."""
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

    parameters, epochs, batch = [*weights, *biases], SETTINGS.epochs, SETTINGS.batch_size
    plain = torch.optim.SGD(parameters, SETTINGS.lr, SETTINGS.momentum, weight_decay=SETTINGS.weight_decay)
    optimizer = torch.optim.Adam(parameters, ADAM_RATE) if adam else plain
    own, given, order = x[~held], y[~held], generator(seed, SLUG, "order")
    for epoch in range(epochs):
        for step, rows in enumerate(batches := torch.randperm(len(given), generator=order).split(batch)):
            if not adam:
                progress = (epoch + step / len(batches)) / epochs
                optimizer.param_groups[0]["lr"] = SETTINGS.learning_rate(progress)
            optimizer.zero_grad()
            found = logits(hidden(own[rows]))
            (cross_entropy(found.flatten(0, 1), given[rows].repeat(len(STRENGTHS))) * len(STRENGTHS)).backward()
            optimizer.step()
    with torch.no_grad():
        seen, strange = logits(hidden(x[held])), logits(hidden(unseen))
        features = hidden(own)
    inside = [mean_accuracy(one, y[held], e[held]) for one in seen]
    outside = [float((one.argmax(1) == truth).double().mean()) for one in strange]
    return Pool(features, given, e[~held], np.array(inside), np.array(outside))
