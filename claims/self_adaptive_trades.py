"""Claim: targets that follow the network keep its robustness late in adversarial training (Self-Adaptive Training)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common import accuracy, perceptron, split_digits
from weathered.core.fit import fit
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.procedures.self_adaptive_trades import SelfAdaptiveTrades
from weathered.procedures.supervised import Supervised
from weathered.verification import Measured

SLUG = "self-adaptive-trades"
SENTENCE = (
    "With right labels, TRADES whose targets follow the network's own predictions from seven tenths of training on is "
    "more accurate under attack at the end of training than TRADES on the given labels."
)
DATA = "scikit-learn digits, 1000 train images, 797 test images"
METRIC = (
    "accuracy on attacked test images after the last epoch, in [0, 1]; 20 steps of projected gradient ascent on the "
    "cross entropy, changes of up to 0.1"
)
BASELINE = "TRADES"
MAIN = "TRADES with moving targets"
ARMS = ("plain", "TRADES", "TRADES with moving targets")
HIGHER_IS_BETTER = True
CLEAN = "accuracy on the test images as they are, in [0, 1]"
NOISY_ROBUST = "accuracy on attacked test images after training with 20 % symmetric label noise, in [0, 1]"
NOISY_CLEAN = "accuracy on the test images as they are after training with 20 % symmetric label noise, in [0, 1]"
ALSO = (CLEAN, NOISY_ROBUST, NOISY_CLEAN)

TRAIN, NOISE, EPSILON = 1000, 0.2, 0.1


class TwoDrops(Settings):
    """Settings whose learning rate falls to a tenth at 0.75 and again at 0.9 of training, as in the source."""

    def learning_rate(self, progress: float, step: float = 0.0) -> float:
        return self.lr * (1.0 if progress < 0.75 else 0.1 if progress < 0.9 else 0.01)


def projected_ascent(model: nn.Module, x: Tensor, labels: Tensor, rng: torch.Generator, steps: int = 20) -> Tensor:
    """Inputs within EPSILON of x and in [0, 1] that raise the cross entropy, by sign steps of a tenth of EPSILON.

    From a start that is uniform on the cube around x. Source: Madry et al., ICLR 2018.
    """
    low, high = (x - EPSILON).clamp_min(0), (x + EPSILON).clamp_max(1)
    adversary = (x + EPSILON * (2 * torch.rand(x.shape, generator=rng) - 1)).clamp(low, high)
    with eval_mode(model):
        for _ in range(steps):
            position = adversary.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(model(position), labels), position)
            adversary = (adversary + EPSILON / 10 * gradient.sign()).clamp(low, high)
    return adversary


def scores(seed: int, train: Dataset, test: Dataset) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy of each arm on attacked test images, and on the test images as they are."""
    procedures: dict[str, Procedure] = {
        "plain": Supervised(),
        "TRADES": SelfAdaptiveTrades(6.0, EPSILON, EPSILON / 4, 10, start=0.7, momentum=1.0),
        "TRADES with moving targets": SelfAdaptiveTrades(6.0, EPSILON, EPSILON / 4, 10, start=0.7, momentum=0.9),
    }
    settings = TwoDrops(epochs=60, batch_size=128, lr=0.1, momentum=0.9, weight_decay=2e-4, seed=seed)
    x = test.floats(torch.arange(len(test)))
    robust, clean = {}, {}
    for name, procedure in procedures.items():
        run = fit(Run(perceptron(train, (256, 256)), train, procedure=procedure, settings=settings))
        adversary = projected_ascent(run.model, x, test.labels, generator(seed, "attack", SLUG))
        with torch.no_grad(), eval_mode(run.model):
            robust[name] = accuracy(run.model(adversary), test.labels)
            clean[name] = accuracy(run.model(x), test.labels)
    return robust, clean


def measure(seed: int) -> Measured:
    """Last accuracies of each arm. The seed draws split, noise, weights, the order of the rows and the attacks."""
    train, test = split_digits(SLUG, seed, TRAIN)
    robust, clean = scores(seed, train, test)
    noisy_robust, noisy_clean = scores(seed, SymmetricNoise(NOISE)(train, generator(seed, "noise", SLUG)), test)
    return Measured(robust, {CLEAN: clean, NOISY_ROBUST: noisy_robust, NOISY_CLEAN: noisy_clean})
