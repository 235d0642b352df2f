"""What scores share: the evidence they read, checks, two functions of logits, and the threshold put on a score.

A score is higher where an input is more out-of-distribution (OOD). Published detectors often score the other way
round; each method file says which sign was turned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core.errors import Incompatible
from weathered.core.facts import name_of
from weathered.core.roles import Part
from weathered.data.dataset import Dataset

CHUNK_VALUES = 2**22
"""Numbers that a score widens to float64 at a time: 32 MiB."""

REMEDIES = {
    "logits": "Extract it with `extract(model, data)`.",
    "features": "The model must offer forward_features and forward_head.",
    "head": "It is there only if the model's classifier is one nn.Linear on the features.",
    "model": "Give the network in evidence.model.",
    "inputs": "Give the inputs, a Dataset or a tensor, in evidence.inputs.",
    "outlier_logits": "Only a network trained with a class of outliers, as by cnc-ood, has them.",
}

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LinearHead:
    """The last layer: logits = weight features + bias. weight (C, D), bias (C,)."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, "C"]

    @classmethod
    def of(cls, layer: nn.Linear, device: torch.device | str = "cpu") -> "LinearHead":
        """A copy of a layer's weights, outside the graph; a missing bias becomes 0."""
        weight = layer.weight.detach().to(device, copy=True)
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().to(device, copy=True)
        return cls(weight, bias)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model knows about N inputs; each score reads the fields it needs.

    logits (N, C): any real numbers. features (N, D): what the last layer sees. head: that layer, if it is linear.
    model, inputs: the network and the N inputs ([0, 1] images or rows), for scores that need a gradient.
    outlier_logits (N,): of a network with a class of outliers beside its C.
    Raises ValueError if the fields disagree about N, D or C.
    """

    logits: Float[Tensor, "N C"] | None = None
    features: Float[Tensor, "N D"] | None = None
    head: LinearHead | None = None
    model: nn.Module | None = None
    inputs: Dataset | Tensor | None = None
    outlier_logits: Float[Tensor, "N"] | None = None

    def __post_init__(self) -> None:
        fields = {name: getattr(self, name) for name in ("logits", "features", "inputs", "outlier_logits")}
        sizes = {name: len(value) for name, value in fields.items() if value is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all evidence must describe the same inputs, got the lengths {sizes}")
        if self.head is not None:
            classes, width = self.head.weight.shape
            found = tuple(None if value is None else value.shape[1] for value in (self.logits, self.features))
            if found[0] not in (None, classes) or found[1] not in (None, width):
                raise ValueError(f"a head from {width} features to {classes} logits does not fit (C, D) = {found}")


class Score(Part):
    """A number per input, higher = more out-of-distribution. scikit-learn shaped, needs no run.

    `fitted` names the attributes that `fit` learns; a score without any may be used at once.
    """

    fitted: ClassVar[tuple[str, ...]] = ()

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, "N"]) -> Self:
        """Learn from features and labels of training samples; without anything to learn, return self unchanged."""
        return self

    def fit_evidence(self, evidence: Evidence, labels: Int[Tensor, "N"]) -> Self:
        """Learn from all that a model knows of training samples; most scores read features alone.

        Raises Incompatible if the evidence lacks what the score learns from.
        """
        if evidence.features is not None:
            return self.fit(evidence.features, labels)
        if self.fitted:
            need(evidence.features, "features", self)
        return self

    def score(self, evidence: Evidence) -> Float[Tensor, "N"]:
        """Scores (N,) in float64. Raises Incompatible if the evidence lacks what the score needs."""
        raise NotImplementedError(f"{type(self).__name__} defines no score")

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, copied; empty before the first fit."""
        values = {name: getattr(self, name) for name in self.fitted}
        if any(value is None for value in values.values()):
            return {}
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raises ValueError if it belongs to another kind of score."""
        if set(state) not in (set(), set(self.fitted)):
            raise ValueError(f"{type(self).__name__} learns {sorted(self.fitted)}, but the state holds {sorted(state)}")
        for name in self.fitted:
            value = state.get(name)
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)


def need(value: T | None, name: str, score: object) -> T:
    """A field of the evidence that must be there; raises Incompatible naming the score and a way out."""
    if value is None:
        raise Incompatible(f"{name_of(score)} needs '{name}', which the evidence does not hold. {REMEDIES[name]}")
    return value


def learnt(value: T | None, score: object) -> T:
    """A fitted attribute that must be there; raises ValueError saying that `fit` comes first."""
    if value is None:
        raise ValueError(f"this {name_of(score)} has not been fitted; call fit with features of training samples first")
    return value


def check_matrix(name: str, values: Tensor) -> None:
    """Raise ValueError unless `values` are finite floats of shape (N, at least 1), naming the first bad row."""
    if values.ndim != 2 or not values.is_floating_point() or values.shape[1] < 1:
        raise ValueError(f"{name} must be floats of shape (N, at least 1), got {tuple(values.shape)} of {values.dtype}")
    # one pass where all is well: NaN reaches both ends, infinity is one
    if len(values) and not all(math.isfinite(float(end)) for end in values.detach().aminmax()):
        broken = ~torch.isfinite(values).all(1)
        raise ValueError(f"{name} must be finite, row {int(broken.nonzero()[0])} holds NaN or infinity")


def by_rows(function: Callable[..., Tensor], *tensors: Tensor, width: int) -> Tensor:
    """`function` over blocks of rows of all tensors, concatenated; `width`: numbers it makes per row."""
    rows = max(1, CHUNK_VALUES // width)
    starts = range(0, max(len(tensors[0]), 1), rows)
    return torch.cat([function(*(tensor[start : start + rows] for tensor in tensors)) for start in starts])


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless temperature > 0 and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}")


def doubt(logits: Float[Tensor, "N C"], temperature: float) -> Float[Tensor, "N"]:
    """One minus the largest probability of softmax(logits / temperature), in float64, in [0, 1 - 1/C].

    Written as r / (1 + r) with r the odds of all other classes, so that it keeps its digits where the largest
    probability rounds to 1. Raises ValueError if an argument is out of range.
    """
    check_temperature(temperature)
    check_matrix("logits", logits)

    def rows(z: Tensor) -> Tensor:
        scaled = z.double() / temperature
        top = scaled.max(1, keepdim=True)
        # the largest term is masked out; subtracting it as exp(0) = 1 would lose the small ones
        odds = (scaled - top.values).exp().scatter(1, top.indices, 0.0).sum(1)
        return odds / (1 + odds)

    return by_rows(rows, logits, width=logits.shape[1])


def free_energy(logits: Float[Tensor, "N C"], temperature: float) -> Float[Tensor, "N"]:
    """-T log sum_c exp(logits_c / T) in float64. Raises ValueError if an argument is out of range."""
    check_temperature(temperature)
    check_matrix("logits", logits)
    return by_rows(lambda z: -temperature * torch.logsumexp(z.double() / temperature, 1), logits, width=logits.shape[1])


def head_energy(
    features: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, "C"],
    change: Callable[[Float[Tensor, "M D"]], Float[Tensor, "M D"]],
) -> Float[Tensor, "N"]:
    """Free energy at T = 1 of weight change(features) + bias, in float64; `change` is given float64 rows.

    Raises ValueError if shapes do not fit or values are not finite.
    """
    check_matrix("features", features)
    check_matrix("weight", weight)
    if weight.shape[1] != features.shape[1] or bias.shape != weight.shape[:1]:
        shapes = tuple(weight.shape), tuple(bias.shape), tuple(features.shape)
        raise ValueError(f"weight (C, D), bias (C,) and features (N, D) do not fit: {shapes}")
    W, b = weight.to(features.device).double(), bias.to(features.device).double()
    return by_rows(lambda h: free_energy(change(h.double()) @ W.T + b, 1.0), features, width=max(weight.shape))


def threshold_at_tpr(id_scores: Float[Tensor, "N"], accept: float = 0.95) -> float:
    """The smallest score t such that at least `accept` of the in-distribution samples have score <= t.

    id_scores (N,): higher = more out-of-distribution, N >= 1. accept in (0, 1]. An input is then flagged if its score
    is > t. To keep `accept` on new data too, take samples that no model was fitted or tuned on.
    Raises ValueError if accept is out of range, or there is no score, or one is NaN.
    """
    if not 0 < accept <= 1:
        raise ValueError(f"accept must be in (0, 1], got {accept}")
    if id_scores.ndim != 1 or not len(id_scores) or bool(torch.isnan(id_scores).any()):
        raise ValueError(f"expected scores (N,) without NaN and N >= 1, got shape {tuple(id_scores.shape)}")
    return float(id_scores.double().kthvalue(acceptance_rank(len(id_scores), accept)).values)


def acceptance_rank(size: int, accept: float) -> int:
    """How many of `size` samples must be accepted so that the share is at least `accept`; at least 1."""
    # rounded, because 0.07 * 100 is a little more than 7
    return max(1, math.ceil(round(accept * size, 9)))
