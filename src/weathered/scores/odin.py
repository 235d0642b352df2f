"""ODIN: softmax at a high temperature, after a small step of the input that makes the prediction more certain.

Source: Liang, Li and Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
ICLR 2018, eqs. 1 and 2. They threshold the largest probability, higher = in-distribution; here the sign is turned.

    x' = x - epsilon sign( grad_x CE(z(x) / T, argmax z(x)) ),     s(x) = 1 - max_c softmax(z(x') / T)_c

The step is taken in the units of x, which for images is [0, 1], because models normalise inside. The authors' code
steps by epsilon / std in normalised units, which is the same step. x' is not cut to [0, 1], as there.
Limits: epsilon = 0 and T = 1 is MSP.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.core.predict import device_of, eval_mode
from weathered.scores.base import Evidence, Score, check_matrix, check_temperature, doubt, need
from weathered.scores.extract import batches


def check_epsilon(epsilon: float) -> None:
    """Raise ValueError unless epsilon >= 0 and finite."""
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be >= 0 and finite, got {epsilon}")


def odin_score(model: nn.Module, x: Tensor, temperature: float = 1000.0, epsilon: float = 0.0014) -> Float[Tensor, "N"]:
    """One minus the largest tempered probability after one signed gradient step towards the prediction.

    model: x -> logits (N, C), differentiable in x; used in evaluation mode. x (N, ...): floats, images in [0, 1], on
    the model's device. temperature T > 0. epsilon >= 0: length of the step per number of x, in the units of x.
    Returns (N,) float64 in [0, 1 - 1/C], higher = more out-of-distribution. Modes, gradients and `requires_grad` of
    the model and x stay as they were, also on error. One forward and one backward pass, and one more forward pass.
    Raises ValueError if T or epsilon is out of range, x is not floating, or the logits are not finite or of one class.
    Source: Liang et al., ICLR 2018, eqs. 1 and 2 (they threshold one minus this).
    """
    check_temperature(temperature)
    check_epsilon(epsilon)
    if not x.is_floating_point():
        raise ValueError(f"x must be floating, got {x.dtype}; images go to [0, 1] first")
    with eval_mode(model), torch.inference_mode(False):
        moved = x.detach().clone()
        if epsilon > 0 and len(x):
            moved = moved - epsilon * _gradient(model, moved, temperature).sign()
        with torch.no_grad():
            return doubt(model(moved), temperature)


@torch.enable_grad()
def _gradient(model: nn.Module, x: Tensor, temperature: float) -> Tensor:
    """A gradient (N, ...) with the signs of that of the cross entropy of the prediction; parameters get none."""
    leaf = x.requires_grad_()
    logits = model(leaf)
    check_matrix("logits", logits)
    if logits.shape[1] < 2:
        raise ValueError("ODIN needs logits of at least two classes, got one")
    z, predicted = logits.double() / temperature, logits.argmax(1, keepdim=True)
    # log(exp(cross entropy) - 1), the log odds of the other classes, rises with the cross entropy and never saturates
    log_odds = z.scatter(1, predicted, -torch.inf).logsumexp(1) - z.gather(1, predicted)[:, 0]
    return torch.autograd.grad(log_odds.sum(), leaf)[0]


class ODIN(Score):
    """Tempered softmax after a step towards the prediction. Liang et al., ICLR 2018.

    temperature > 0, epsilon >= 0 as in `odin_score`. batch_size: inputs per step. Needs model and inputs; nothing to
    fit. The paper chooses epsilon on out-of-distribution data; the default is theirs for CIFAR-10 and a DenseNet.
    """

    def __init__(self, temperature: float = 1000.0, epsilon: float = 0.0014, batch_size: int = 256):
        check_temperature(temperature)
        check_epsilon(epsilon)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.temperature, self.epsilon, self.batch_size = temperature, epsilon, batch_size

    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,) on the CPU, higher = more out-of-distribution; errors as in `odin_score`."""
        model = need(evidence.model, "model", self)
        blocks = batches(need(evidence.inputs, "inputs", self), self.batch_size, device_of(model))
        scores = [odin_score(model, x, self.temperature, self.epsilon).cpu() for x in blocks]
        return torch.cat(scores) if scores else torch.zeros(0, dtype=torch.float64)
