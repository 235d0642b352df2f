"""Claim: with a rate in proportion to the batch, warm-up and a cosine, large batches learn (Bag of Tricks, 2019)."""

from torch import Tensor, nn

from common import accuracy, split_digits
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.network import Network, assemble, seeded
from weathered.tricks.base import Trick, with_tricks
from weathered.tricks.cosine import CosineDecay
from weathered.tricks.linear_scaling import LinearScaling
from weathered.tricks.warm_up import WarmUp

SLUG = "bag-of-tricks"
SENTENCE = (
    "In batches of 500 and few epochs, a small residual network whose learning rate grows with the batch, warms up and "
    "then falls along a cosine is more accurate than one trained at the rate of batches of 50."
)
DATA = "scikit-learn digits, 1000 train images, 797 test images"
METRIC = "test accuracy after the last epoch, in [0, 1]"
BASELINE = "batch 500"
MAIN = "batch 500, scaled, warm-up, cosine"
ARMS = (
    "batch 50",
    "batch 500",
    "batch 500, scaled",
    "batch 500, scaled, warm-up",
    "batch 500, scaled, warm-up, cosine",
    "batch 500, scaled, warm-up, cosine, zero gamma",
)
HIGHER_IS_BETTER = True

TRAIN = 1000
EPOCHS = 12
LR = 0.02
CHANNELS, BLOCKS = 16, 4
SCALED, WARM, COSINE = LinearScaling(50), WarmUp(2 / EPOCHS), CosineDecay()


class Residual(nn.Module):
    """relu(x + branch(x)), the branch two 3x3 convolutions with batch normalisation. zero_gamma: it starts at 0."""

    def __init__(self, channels: int, zero_gamma: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        self.branch = nn.Sequential(*layers[:-1])
        if zero_gamma:
            nn.init.zeros_(layers[-2].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)).relu()


class Body(nn.Module):
    """A 3x3 convolution, residual blocks of one width, and a mean over positions."""

    def __init__(self, zero_gamma: bool):
        super().__init__()
        stem = [nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
        self.layers = nn.Sequential(*stem, *(Residual(CHANNELS, zero_gamma) for _ in range(BLOCKS)))
        self.num_features = CHANNELS

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = True) -> Tensor:
        return x.mean((2, 3))


def network(train: Dataset, zero_gamma: bool, seed: int) -> Network:
    with seeded(seed):
        return assemble(Body(zero_gamma), train, "linear")


def measure(seed: int) -> dict[str, float]:
    """Last test accuracy of each arm. The seed draws the split, the weights and the order of the rows."""
    train, test = split_digits(SLUG, seed, TRAIN)
    arms: dict[str, tuple[int, list[Trick]]] = {
        "batch 50": (50, []),
        "batch 500": (500, []),
        "batch 500, scaled": (500, [SCALED]),
        "batch 500, scaled, warm-up": (500, [SCALED, WARM]),
        "batch 500, scaled, warm-up, cosine": (500, [SCALED, WARM, COSINE]),
        "batch 500, scaled, warm-up, cosine, zero gamma": (500, [SCALED, WARM, COSINE]),
    }
    values = {}
    for name, (batch, tricks) in arms.items():
        plain = Settings(
            epochs=EPOCHS, batch_size=batch, lr=LR, nesterov=True, weight_decay=1e-4, schedule="constant", seed=seed
        )
        settings, _ = with_tricks(tricks, plain, "")
        run = fit(Run(network(train, "zero gamma" in name, seed), train, settings=settings))
        values[name] = accuracy(run.predict(test), test.labels)
    return values
