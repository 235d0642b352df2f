"""Temperature scaling: one number, fitted on held-out data, by which all logits are divided.

Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    T = argmin over T > 0 of the mean cross entropy of softmax(z / T) on held-out labels
which is convex in 1 / T: one sound minimum, found by Newton's method between bounds. No order of classes changes.
Limits: T = 1 where the logits are calibrated already; T above 1 for confidence that is too high, below 1 for too low.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core.errors import DataError
from weathered.core.facts import Traits
from weathered.core.procedure import Procedure
from weathered.core.roles import Part
from weathered.data.dataset import Dataset
from weathered.procedures.base import replace_classifier

if TYPE_CHECKING:
    from weathered.core.run import Run

LEAST, LARGEST = 1e-3, 1e3
"""Bounds on the temperature: where all predictions are right the best is 0, where logits say nothing it is infinite."""

STEPS = 100
"""Steps of the search; each at least halves the ratio of the bounds, most square the error."""


def fit_temperature(logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> float:
    """The temperature in [0.001, 1000] with the smallest mean cross entropy of logits / T on the labels.

    logits (N, C), N >= 1, C >= 2, finite. labels (N,) in [0, C). Computed in float64.
    Raises DataError for shapes, labels or logits that are none of this. Warns where the best lies at a bound.
    """
    _check(logits)
    if not len(logits) or labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise DataError(
            f"expected at least one row of logits (N, C) and labels (N,), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"labels must be in [0, {logits.shape[1] - 1}] for {logits.shape[1]} logits, got {low if low < 0 else high}"
        )
    wide = logits.detach().double()
    found = 1 / _best_inverse(wide - wide.gather(1, labels[:, None].long()))
    if not LEAST < found < LARGEST:
        what = "no logit leads its label" if found <= LEAST else "the logits say next to nothing of the labels"
        warnings.warn(f"{what} in the {len(logits)} held-out rows, so the temperature is {found:g}", stacklevel=2)
    return found


def _best_inverse(ahead: Float[Tensor, "N C"]) -> float:
    """1 / T for the leads of all logits over that of the label."""
    if not bool(ahead.any()):
        return 1.0

    def slopes(inverse: float) -> tuple[float, float]:
        p = (inverse * ahead).softmax(1)
        mean = (p * ahead).sum(1)
        return float(mean.mean()), float(((p * ahead.square()).sum(1) - mean.square()).mean())

    low, high, inverse = 1 / LARGEST, 1 / LEAST, 1.0
    for _ in range(STEPS):
        slope, curvature = slopes(inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        if slope == 0 or high / low < 1 + 1e-14:
            break
        ahead_of = inverse - slope / curvature if curvature > 0 else math.inf
        # outside the bounds the middle of their ratio is safer
        step = ahead_of if low < ahead_of < high else math.sqrt(low * high)
        if abs(step - inverse) <= 1e-14 * inverse:
            break
        inverse = step
    # a bound that the slope never turned at is the minimum itself
    return 1 / LARGEST if slopes(1 / LARGEST)[0] >= 0 else 1 / LEAST if slopes(1 / LEAST)[0] <= 0 else inverse


def _check(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise DataError(f"logits must be floats (N, C) with C >= 2, got {tuple(logits.shape)} of {logits.dtype}")
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(1).nonzero()[0])
        raise DataError(f"logits must be finite, but row {row} holds NaN or infinity")


class TemperatureScaling(Part):
    """Logits divided by one number that held-out data choose. `temperature`: 1 before `fit`.

    Source: Guo et al., ICML 2017.
    """

    def __init__(self) -> None:
        self.temperature = 1.0

    def fit(self, logits: Float[Tensor, "N C"], labels: Int[Tensor, "N"]) -> Self:
        """Choose the temperature on held-out logits and labels; raises and warns as `fit_temperature`."""
        self.temperature = fit_temperature(logits, labels)
        return self

    def transform(self, logits: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """logits / temperature, in their own type. Raises DataError for logits that are not finite or not (N, C)."""
        _check(logits)
        return logits / self.temperature

    def state_dict(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.temperature = float(state["temperature"])


class Tempered(nn.Module):
    """A network or classifier whose logits are divided by a temperature, which is saved with its weights."""

    temperature: Tensor

    def __init__(self, inner: nn.Module, temperature: float):
        super().__init__()
        self.inner = inner
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits / self.temperature.to(logits)


def tempered(network: nn.Module, temperature: float) -> nn.Module:
    """A copy of a network that gives logits / temperature.

    A linear classifier stays one, with weights and bias divided; any other is followed by the division.
    """
    network = copy.deepcopy(network)
    if not hasattr(network, "get_classifier"):
        return Tempered(network, temperature)
    classifier = cast(Any, network).get_classifier()
    if not isinstance(classifier, nn.Linear):
        replace_classifier(network, Tempered(classifier, temperature))
        return network
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.div_(temperature)
    return network


class TemperatureScaledTraining(Procedure):
    """Plain training; the network that predicts has its logits divided by a temperature fitted on validation data.

    `scaling` holds the temperature, fitted once after the last epoch; until then it is 1. Predicted classes are those
    of plain training. Measure calibration on other data than those.
    """

    traits = Traits(
        needs={"validation": "fits the temperature on it"},
        honours=Procedure.traits.honours,
    )

    def __init__(self) -> None:
        self.scaling = TemperatureScaling()

    def setup(self, run: Run) -> dict[str, nn.Module]:
        self.scaling = TemperatureScaling()
        return {}

    def after_epoch(self, run: Run) -> None:
        if run.step == run.total_steps:
            validation = cast(Dataset, run.validation)
            self.scaling.fit(run.predict(validation), validation.labels)

    def predictor(self, run: Run) -> nn.Module:
        return tempered(run.model, self.scaling.temperature)

    def metrics(self) -> dict[str, float]:
        return {"temperature": self.scaling.temperature}

    def state_dict(self) -> dict[str, Any]:
        return self.scaling.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaling.load_state_dict(state)
