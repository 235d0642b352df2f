"""A loss of your own in one file: generalised cross entropy, its limit cases, and a first run with it.

L_q(z, y) = (1 - p_y^q) / q with p = softmax(z): Zhang and Sabuncu, NeurIPS 2018, eq. 6.
Limits: q -> 0 is cross entropy, q = 1 is 1 - p_y, half of the mean absolute error. For q > 0 it is at most 1 / q, so
one wrong label can only do so much harm.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.testing import assert_close

from weathered import Run, Settings, build_model, fit, load_pair
from weathered.core.facts import Traits
from weathered.core.rng import generator
from weathered.core.roles import Part
from weathered.data.dataset import Dataset
from weathered.data.makers.symmetric_noise import SymmetricNoise
from weathered.losses.cross_entropy import CrossEntropy, cross_entropy


def generalized_cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], q: float = 0.7
) -> Float[Tensor, "B"]:
    """(1 - p_y^q) / q per sample, in [0, 1 / q]. logits (B, C), any real numbers; labels (B,) in [0, C)."""
    log_p = -cross_entropy(logits, labels)
    # expm1 keeps its digits where p_y^q is close to 1
    return -torch.expm1(q * log_p) / q


class GeneralizedCrossEntropy(Part):
    """Generalised cross entropy per sample. Zhang and Sabuncu, NeurIPS 2018.

    q in (0, 1]: small is close to cross entropy, 1 trusts no label much. Raises ValueError outside.
    It is linear in the target, so mixtures need nothing more: the engine sums over their labels.
    """

    traits = Traits()

    def __init__(self, q: float = 0.7):
        if not 0 < q <= 1:
            raise ValueError(f"q must be in (0, 1], got {q}")
        self.q = q

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return generalized_cross_entropy(logits, labels, self.q)


def test_small_q_is_cross_entropy() -> None:
    logits, labels = torch.randn(64, 10, dtype=torch.float64), torch.randint(10, (64,))
    assert_close(GeneralizedCrossEntropy(q=1e-9)(logits, labels), cross_entropy(logits, labels), rtol=1e-6, atol=0)


def test_q_of_one_is_one_minus_the_probability() -> None:
    logits, labels = torch.randn(64, 10, dtype=torch.float64), torch.randint(10, (64,))
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    assert_close(GeneralizedCrossEntropy(q=1.0)(logits, labels), 1 - p)


def test_the_loss_of_a_wrong_label_is_bounded() -> None:
    logits = torch.tensor([[1000.0, 0.0]])
    assert_close(GeneralizedCrossEntropy(q=0.5)(logits, torch.tensor([1])), torch.tensor([2.0]))


def accuracy(train: Dataset, test: Dataset, loss: Part, epochs: int) -> float:
    """Test accuracy of cnn_small after `epochs` epochs with this loss."""
    model = build_model("cnn_small", train)
    run = fit(Run(model, train, loss=loss, settings=Settings(epochs=epochs, batch_size=64)))
    return float((run.predict(test).argmax(1) == test.labels).double().mean())


def main(epochs: int = 20) -> None:
    """Compare it with cross entropy on digits of which 40 % carry a wrong label, one seed."""
    train, test = load_pair("digits")
    noisy = SymmetricNoise(rate=0.4)(train, generator(0, "noise"))
    for loss in (CrossEntropy(), GeneralizedCrossEntropy()):
        print(f"{type(loss).__name__}: test accuracy {accuracy(noisy, test, loss, epochs):.3f}")


if __name__ == "__main__":
    main()
