"""A loss that trains another scale than the network gives, and says so; parts that forget to ask show a difference."""

from torch import Tensor, nn

from weathered.losses.cross_entropy import CrossEntropy

FACTOR = 7.0


class Scaled(CrossEntropy):
    """Cross entropy of seven times the logits."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().__call__(FACTOR * logits, labels)

    def soft(self, logits: Tensor, target: Tensor) -> Tensor:
        return super().soft(FACTOR * logits, target)

    def test_logits(self, logits: Tensor) -> Tensor:
        return FACTOR * logits


class Multiplied(nn.Module):
    """Seven times its input, to put the same factor into a network."""

    def forward(self, x: Tensor) -> Tensor:
        return FACTOR * x
