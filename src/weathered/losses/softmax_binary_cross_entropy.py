"""Binary cross entropy of the softmax: every class asked by itself whether it is the label, on normalised scores.

Source: the released code of Verma et al., "Manifold Mixup", ICML 2019.
L = -(log p_y + sum over k != y of log(1 - p_k)) / C for p = softmax(z).
Limits: at uniform p its value is -(log(1/C) + (C - 1) log(1 - 1/C)) / C and its gradient that of cross entropy over
C - 1, so a learning rate that suits the one is far too large or small for the other.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weathered.core.facts import Traits
from weathered.weighting.base import check_labels


def softmax_binary_cross_entropy(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Mean over the classes of the binary cross entropies, in nats, finite for all finite logits.

    logits (B, C), C >= 2. labels (B,) in [0, C). Raises ValueError otherwise.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, C) with C >= 2, got {tuple(logits.shape)}")
    check_labels(labels, logits.shape[1])
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    top = log_p.detach().argmax(1, keepdim=True)
    # 1 - p of the largest has no digits left near p = 1, the sum of the others has
    others = log_p.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    below = log_p.scatter(1, top, -1.0)
    log_rest = torch.log1p(-below.exp()).scatter(1, top, others)
    own = labels[:, None]
    return (log_rest.gather(1, own) - log_p.gather(1, own))[:, 0].sub(log_rest.sum(1)) / logits.shape[1]


class SoftmaxBinaryCrossEntropy:
    """Binary cross entropy of each class's softmax probability, averaged over the classes.

    Linear in the target, so mixtures of labels need nothing more. Its gradients are smaller than those of cross
    entropy, C - 1 times at the start: raise the learning rate to match.
    Raises ValueError for logits of fewer than two classes or labels outside them. Source: code of Verma et al., 2019.
    """

    traits = Traits()

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return softmax_binary_cross_entropy(logits, labels)
