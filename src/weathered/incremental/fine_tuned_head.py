"""Fine-tuned head: a linear classifier trained by gradient descent on each phase alone, the baseline that forgets.

Each call of `partial_fit` runs stochastic gradient descent with momentum on the cross entropy of the given rows over
all classes seen so far. Nothing protects the columns of earlier classes, whose rows no longer occur.
Limit case: one phase with all classes is multinomial logistic regression by gradient descent.
Source: the fine-tuning baseline of Rebuffi et al., iCaRL, CVPR 2017.
"""

from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad, softmax

from weathered.core.rng import generator


def cross_entropy_gradient(
    W: Float[Tensor, "D C"], features: Float[Tensor, "n D"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "D C"]:
    """Gradient of the mean cross entropy of softmax(features W) with respect to W."""
    error = softmax(features @ W, dim=1) - one_hot(labels, W.shape[1])
    return features.T @ error / len(features)


class FineTunedHead:
    """Linear classifier without bias, trained by SGD on one phase after the other.

    learning_rate > 0; momentum in [0, 1), started anew with each call; epochs >= 1 over the rows of a call, in a
    random order drawn from seed; batch_size >= 1. Weights start at zero. Features are used as they are: expand them
    first to compare with a method that expands. Fitted state: W_ (D, C), seen_ (C,) bool, on the features' device.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        epochs: int = 10,
        batch_size: int = 64,
        seed: int = 0,
    ):
        if not learning_rate > 0 or not 0 <= momentum < 1:
            raise ValueError(f"expected learning_rate > 0 and momentum in [0, 1), got {learning_rate} and {momentum}")
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"epochs and batch_size must be >= 1, got {epochs} and {batch_size}")
        self.learning_rate, self.momentum, self.epochs, self.batch_size = learning_rate, momentum, epochs, batch_size
        self.seed = seed
        self.W_: Tensor | None = None
        self.seen_: Tensor | None = None
        self._calls = 0

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Self:
        """Forget everything and learn these rows; arguments and errors as in `partial_fit`."""
        self._check(features, labels, None)
        self.W_, self.seen_, self._calls = None, None, 0
        return self.partial_fit(features, labels)

    @torch.no_grad()
    def partial_fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Self:
        """Train on these rows only: features (N, D) finite floats, labels (N,) integers >= 0, at least one row.

        Raises ValueError before anything changes if an argument is not so or D differs from earlier calls, and
        without keeping the step if the weights become infinite.
        """
        self._check(features, labels, None if self.W_ is None else self.W_.shape[0])
        labels = labels.to(features.device).long()
        old = features.new_zeros(features.shape[1], 0) if self.W_ is None else self.W_
        seen = labels.new_zeros(0, dtype=torch.bool) if self.seen_ is None else self.seen_
        missing = max(0, int(labels.max()) + 1 - old.shape[1])
        W, seen = pad(old, (0, missing)), pad(seen, (0, missing))
        seen = seen | (labels.bincount(minlength=len(seen)) > 0)
        # a class never seen must not share the softmax, so training works on the columns of classes seen
        columns = seen.nonzero()[:, 0]
        position = torch.cumsum(seen, 0) - 1
        W = W.index_copy(1, columns, self._descend(W[:, columns], features.to(W), position[labels]))
        if not torch.isfinite(W).all():
            raise ValueError(f"the weights became infinite; lower learning_rate, which is {self.learning_rate}")
        self.W_, self.seen_, self._calls = W, seen, self._calls + 1
        return self

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits (B, C), -inf for classes never seen. Raises ValueError before the first fit or for another D."""
        if self.W_ is None or self.seen_ is None:
            raise ValueError("this FineTunedHead has seen no data yet; call fit or partial_fit first")
        self._check(features, None, self.W_.shape[0])
        return (features.to(self.W_) @ self.W_).masked_fill_(~self.seen_, -torch.inf)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the weights, of the mask of classes seen, and the number of calls, which keys the row order."""
        if self.W_ is None or self.seen_ is None:
            return {}
        return {"W": self.W_.clone(), "seen": self.seen_.clone(), "calls": self._calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; an empty state is a learner that has seen nothing."""
        self.W_ = state["W"].clone() if state else None
        self.seen_ = state["seen"].clone() if state else None
        self._calls = state["calls"] if state else 0

    def _descend(self, W: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        rng = generator(self.seed, "fine_tuned_head", self._calls)
        velocity = torch.zeros_like(W)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(labels), generator=rng).to(labels.device).split(self.batch_size):
                velocity = self.momentum * velocity + cross_entropy_gradient(W, features[rows], labels[rows])
                W = W - self.learning_rate * velocity
        return W

    def _check(self, features: Tensor, labels: Tensor | None, width: int | None) -> None:
        if features.ndim != 2 or not features.is_floating_point() or not torch.isfinite(features).all():
            raise ValueError(
                f"features must be finite floats (N, D), got shape {tuple(features.shape)} of {features.dtype}"
            )
        if width is not None and features.shape[1] != width:
            raise ValueError(f"features must have the width {width} of the first call, got {features.shape[1]}")
        if labels is None:
            return
        if labels.shape != features.shape[:1] or labels.is_floating_point() or not len(labels):
            raise ValueError(
                f"labels must be one integer for each of {len(features)} rows, at least one, "
                f"got shape {tuple(labels.shape)} of {labels.dtype}"
            )
        if int(labels.min()) < 0:
            raise ValueError(f"labels must be >= 0, got {int(labels.min())} at row {int(labels.argmin())}")
