"""Cross entropy, the field's default, and its label-smoothed form.

L = -log softmax(logits)[label]. With smoothing eps the target is (1 - eps) onehot + eps / C
(Szegedy et al., CVPR 2016, section 7); eps = 0 is plain cross entropy.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from weathered.core.roles import Part
from weathered.weighting.base import check_labels

NO_LABEL = -(2**62)
"""A value that no label has, so that none is ignored."""


def cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"], label_smoothing: float = 0.0
) -> Float[Tensor, "B"]:
    """Negative log-likelihood per sample, in nats. logits (B, C), any real numbers; labels (B,) in [0, C).

    Raises ValueError for a label outside the classes.
    """
    try:
        # torch's default would give a label of -100 the loss 0 without a word
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=NO_LABEL)
    except IndexError:
        # looked at only now, since a look costs time in every step
        check_labels(labels, logits.shape[1])
        raise


class CrossEntropy(Part):
    """Cross entropy per sample; linear in the target, so mixtures may be given to `soft`."""

    def __init__(self) -> None:
        self.label_smoothing = 0.0

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return cross_entropy(logits, labels, self.label_smoothing)

    def soft(self, logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
        """Cross entropy against a distribution per sample, (B, C) with rows that sum to 1."""
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=self.label_smoothing)


class LabelSmoothing(CrossEntropy):
    """Cross entropy against (1 - smoothing) onehot + smoothing / C. smoothing in [0, 1)."""

    def __init__(self, smoothing: float = 0.1):
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.label_smoothing = smoothing
