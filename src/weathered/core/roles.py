"""The contracts of the slots, and the conventions stated once.

Losses return one value per sample (B,), never reduced. Higher scores mean more out-of-distribution.
Images are (B, C, H, W) in [0, 1] wherever a part sees them; models normalise inside. `progress` runs over [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.target import Target

if TYPE_CHECKING:
    from weathered.core.run import Run
    from weathered.data.dataset import Dataset


class Output(NamedTuple):
    """What a model says about a batch: logits (B, C) and, where a part asked for them, features (B, D)."""

    logits: Float[Tensor, "B C"]
    features: Float[Tensor, "B D"] | None = None


@runtime_checkable
class HasState(Protocol):
    """Anything whose state a checkpoint can hold: a `Part`, or a torch module."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Part:
    """Base of everything that fills a slot: declared traits and, where it has any, state."""

    traits: Traits = Traits()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers that a checkpoint must hold; empty for a part without state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but the checkpoint holds {sorted(state)}")

    def before_epoch(self, run: Run) -> None:
        """Called before the first step of each epoch, at that step's learning rate; may write the part's own state."""

    def after_epoch(self, run: Run) -> None:
        """Called after each epoch; may read validation results and write the part's own state."""

    def metrics(self) -> dict[str, float]:
        """Figures of the epoch that has ended, by name, for the run's metrics; none by default."""
        return {}

    def row_columns(self) -> dict[str, Tensor]:
        """Columns (N,) float of the training rows, by name, that a finished run keeps; none by default."""
        return {}


class BatchTransform(Part):
    """Base of transforms: says how to call one outside a run, then leaves the work to `apply`.

    accepts_uint8: whether images may come as bytes; otherwise a run gives floats.
    """

    accepts_uint8 = False

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """A new batch; raises TypeError for anything but a batch and a generator."""
        if not isinstance(batch, Batch) or not isinstance(rng, torch.Generator):
            raise TypeError(
                f"{type(self).__name__} takes a Batch and a torch.Generator, got {type(batch).__name__} and "
                f"{type(rng).__name__}; call it with Batch.of(x, y) and torch.Generator().manual_seed(0)"
            )
        return self.apply(batch, rng)

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        """What the method does to a batch; draws from `rng` only and leaves the given batch untouched."""
        raise NotImplementedError


@runtime_checkable
class Loss(Protocol):
    """(logits (B, C), labels (B,)) -> (B,). May offer soft(logits, p (B, C)) -> (B,) when not linear in the target,
    and test_logits(logits) -> logits when softmax at test time needs another scale."""

    def __call__(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> Float[Tensor, "B"]: ...


class Transform(Protocol):
    """(batch, rng) -> a new batch; draws from `rng` only and leaves the given batch untouched."""

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch: ...


class Reweight(Protocol):
    """(losses (B,), target, progress) -> weights (B,); the engine averages weights * losses over the batch.

    `losses` are detached. A part with the trait `batchwise` is given the batch of all devices together.
    """

    def __call__(self, losses: Float[Tensor, "B"], target: Target, progress: float) -> Float[Tensor, "B"]: ...


class Sampler(Protocol):
    """weights(labels (N,), progress) -> (N,) non-negative weights with which the next epoch is drawn."""

    def weights(self, labels: Int[Tensor, "N"], progress: float) -> Float[Tensor, "N"]: ...


class Term(Protocol):
    """(run, batch, output) -> (B,) or scalar, added to the loss; the part's own `weight` is already in it."""

    def __call__(self, run: Run, batch: Batch, output: Output) -> Tensor: ...


class Stepper(Protocol):
    """step(run, closure) -> loss; `closure` computes the loss and may be called again with the same draws."""

    def step(self, run: Run, closure: Any) -> Tensor: ...


class DataMaker(Protocol):
    """(dataset, rng) -> a new data set with a known flaw, its exact truth kept beside it."""

    def __call__(self, dataset: Dataset, rng: torch.Generator) -> Dataset: ...


class Fitted(Protocol):
    """scikit-learn shaped, needs no run: fit or partial_fit, then score or predict."""

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Self: ...


class Attack(Protocol):
    """(model, x, y, rng) -> x_adv, same shape as x, inside [0, 1]."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor: ...
