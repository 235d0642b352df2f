"""Claim: rows generated from a prototype help a classifier of few shots (TFH, WACV 2022), on generated patterns.

Each class is a smooth random pattern, its samples are turned, scaled and shifted copies under smooth and white noise.
A small network learns 60 base classes; episodes are over 20 others. Features are rescaled to the mean 0.5 over base
images, which no arm but the generator notices beyond the penalty of logistic regression. How strong turns and noise
are was set by the accuracy of logistic regression alone, on the first seed and after all arms had been seen there once.
The generator's default learning rate was chosen by its error on base classes of that seed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.fit import fit
from weathered.core.predict import eval_mode
from weathered.core.rng import derive_seed, generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.fewshot.classifiers import LOGISTIC, logistic_regression, on_support
from weathered.fewshot.episodes import FewShotMethod, draw_episodes, run_episodes
from weathered.fewshot.figures import hallucinator_figures
from weathered.fewshot.tfh import TFH
from weathered.nn.network import Network, seeded
from weathered.verification import Measured

SLUG = "tfh"
SENTENCE = (
    "From one image of each of five new classes, logistic regression is more accurate with a hundred feature maps for "
    "each class from a generator that was fine-tuned on these images than without."
)
DATA = (
    "generated 16x16 patterns, 60 base classes of 40 images and 20 novel ones of 40, features of a network of 48x4x4 "
    "maps trained on the base classes, 200 episodes (100 of five shots) of 5 novel classes with 15 queries of each"
)
METRIC = "accuracy on the queries of 1-shot episodes, in [0, 1]"
FIVE = "accuracy on the queries of 5-shot episodes, in [0, 1]"
ERROR = (
    "error of generated features of base classes over the variance of their prototypes, 0 for logistic regression, "
    "lower is better"
)
SPREAD = "spread of generated features within a class over that between classes, 0 for logistic regression"
BASELINE = LOGISTIC
MAIN = "tfh-ft"
ARMS = (LOGISTIC, "tfh", "tfh-ft", "tfh (vectors)")
ALSO = (FIVE, ERROR, SPREAD)

BASE, NOVEL, IMAGES, SIZE, WAYS, QUERIES = 60, 20, 40, 16, 5, 15
EPISODES = {1: 200, 5: 100}


def measure(seed: int) -> Measured:
    """Accuracies of all arms on the same episodes. The seed draws patterns, images, network, generator and episodes."""
    images, labels = patterns(BASE + NOVEL, IMAGES, generator(seed, "claim", SLUG))
    novel = labels >= BASE
    network = trained_network(images[~novel], labels[~novel], seed)
    maps = feature_maps(network, images)
    maps = maps * (0.5 / maps[~novel].mean())
    base_maps, base_labels, maps, labels = maps[~novel], labels[~novel], maps[novel], labels[novel] - BASE

    tensor = TFH(seed=seed).fit(base_maps, base_labels)
    vector = TFH(vector=True, adapt_steps=0, seed=seed).fit(base_maps, base_labels)
    methods: dict[str, FewShotMethod] = {
        LOGISTIC: on_support(logistic_regression),
        **tensor.methods(),
        **vector.methods(),
    }
    values = {}
    for shots, count in EPISODES.items():
        rng = generator(seed, "claim episodes", SLUG)
        episodes = draw_episodes(labels, WAYS, shots, QUERIES, count, rng)
        result = run_episodes(methods, lambda rows: maps[rows], episodes)
        values[shots] = {name: result.estimate(name).value for name in methods}
    of_maps, of_vectors = (hallucinator_figures(method, base_maps, base_labels) for method in (tensor, vector))
    figures = dict(zip(ARMS[1:], (of_maps, of_maps, of_vectors), strict=True))
    error = {LOGISTIC: 0.0, **{name: found.error / found.variance for name, found in figures.items()}}
    spread = {LOGISTIC: 0.0, **{name: found.spread for name, found in figures.items()}}
    return Measured(values[1], {FIVE: values[5], ERROR: error, SPREAD: spread})


def patterns(classes: int, each: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 16, 16) uint8, class by class, and their labels."""
    grid = torch.randn(classes, 1, 5, 5, generator=rng)
    smooth = F.interpolate(grid, (2 * SIZE, 2 * SIZE), mode="bicubic", align_corners=True).repeat_interleave(each, 0)
    count = len(smooth)
    angle, size = (torch.rand(2, count, generator=rng) * 2 - 1) * torch.tensor([[math.pi / 3], [0.3]])
    shift = (torch.rand(count, 2, generator=rng) * 2 - 1) * 0.15
    # half of the pattern is seen, so that turned copies show no edge
    cos, sin = (0.5 * (1 + size) * turn(angle) for turn in (torch.cos, torch.sin))
    turned = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    views = F.grid_sample(
        smooth, F.affine_grid(turned, [count, 1, SIZE, SIZE], align_corners=False), align_corners=False
    )
    soft = torch.randn(count, 1, 4, 4, generator=rng)
    views = views + 0.5 * F.interpolate(soft, (SIZE, SIZE), mode="bicubic", align_corners=True)
    views = views + 0.4 * torch.randn(views.shape, generator=rng)
    return (128 + 42 * views).round().clamp(0, 255).byte(), torch.arange(classes).repeat_interleave(each)


class Maps(nn.Module):
    """Three convolutions of 32, 48 and 48 channels with ReLU, halved twice in size: 16x16 images to 48x4x4 maps."""

    num_features = 48

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 48), (48, 48)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers.insert(6, nn.MaxPool2d(2))
        layers.insert(3, nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x.mean((2, 3))


def trained_network(images: Tensor, labels: Tensor, seed: int) -> Network:
    """The network, trained on base classes with cross entropy."""
    base = Dataset.of(images, labels)
    with seeded(derive_seed(seed, SLUG)):
        network = Network(Maps(), nn.Linear(48, BASE), torch.full((1,), 0.5), torch.full((1,), 0.25))
    fit(Run(network, base, settings=Settings(epochs=15, batch_size=64, lr=0.05, seed=seed)))
    return network


@torch.no_grad()
def feature_maps(network: Network, images: Tensor) -> Tensor:
    """Maps (n, 48, 4, 4) in evaluation mode."""
    with eval_mode(network):
        return torch.cat([network.forward_features(part.float() / 255) for part in images.split(512)])
