"""Experimental: features without labels, each image's target a running average of what a slower network says of it.

After Huang et al., "Self-Adaptive Training: Bridging Supervised and Self-Supervised Learning", TPAMI 2022. Its code is
not public. Known of it: one view of each image, targets that start at random, a momentum network, a predictor, and
about 0.7 for the targets. Not known, and chosen here: the momentum of the network, depths and widths of projector and
predictor, batch normalisation in them, and all settings of training. Figures of the paper cannot be held against it.
f is the network up to its features, g a projector, q a predictor, f', g' the moving averages of f, g; |v| = 1 below:
    T[i] <- momentum * T[i] + (1 - momentum) * g'(f'(x_i)) / |.|      T starts as random directions; i is the row of x_i
    loss =  mean |q(g(f(x_i))) / |.| - T[i] / |.||^2                  T and f', g' without gradient
    f', g' <- average * (f', g') + (1 - average) * (f, g)             after the step
The classifier learns from the given labels all along, on features that pass no gradient on; in the last share `probe`
of training the features stand still and it learns alone, by the run's optimizer: a lower bound of what a linear
classifier fitted to the end reaches on these features.
Limits: momentum = 0 is BYOL (Grill et al., NeurIPS 2020) with one view; momentum = 1 predicts fixed noise.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.roles import Output
from weathered.core.target_table import TargetTable, check_momentum
from weathered.nn.ema import update_average
from weathered.procedures.base import check_range, features_of

if TYPE_CHECKING:
    from weathered.core.run import Run

PROJECTOR, PREDICTOR, AVERAGE, AVERAGE_PROJECTOR = "projector", "predictor", "average", "average_projector"


def direction_losses(prediction: Float[Tensor, "B D"], targets: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """Squared distance between the directions of two vectors, 2 - 2 cos, per row and in [0, 4].

    Gradients reach the prediction only. A vector of length 0 counts as 0 and gives 1.
    """
    return (F.normalize(prediction, dim=1) - F.normalize(targets.detach(), dim=1)).square().sum(1)


def random_directions(rows: int, size: int, rng: torch.Generator) -> Float[Tensor, "N D"]:
    """`rows` points (rows, size), uniform on the unit sphere."""
    return F.normalize(torch.randn(rows, size, generator=rng), dim=1)


class SelfAdaptiveSelfSupervised(Procedure):
    """Experimental: learn features without labels from one view of each image; the classifier is a linear probe.

    momentum in [0, 1]: of the targets. average in [0, 1]: of the moving average of the network. hidden >= 1: units of
    the hidden layer of projector and predictor. size >= 1: length of a target. probe in [0, 1]: last share of training,
    in which features are frozen, in evaluation mode, and the classifier alone is trained; 1 leaves them at their start.

    The loss part trains the classifier and nothing else: features are the same bit for bit whatever the labels. A
    stepper that looks at all gradients together would break that, so none but the plain one is called. Memory for the
    targets: 4 bytes for each training row and entry. Raises ValueError for arguments out of range.
    """

    traits = Traits(
        needs={
            "features": "trains features apart from the classifier",
            "index": "keeps a target for each training row",
            "hard_target": "takes each input as one view of one row",
        },
        honours=frozenset({"sampler", "transform", "loss"}),
    )

    def __init__(
        self, momentum: float = 0.7, average: float = 0.99, hidden: int = 512, size: int = 128, probe: float = 0.2
    ):
        check_momentum(momentum)
        check_range("average", average, 0 <= average <= 1, "[0, 1]")
        check_range("probe", probe, 0 <= probe <= 1, "[0, 1]")
        for name, count in (("hidden", hidden), ("size", size)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.momentum, self.average, self.hidden, self.size, self.probe = momentum, average, hidden, size, probe

    def setup(self, run: Run) -> dict[str, nn.Module]:
        start = random_directions(len(run.train), self.size, generator(run.seed, "self-adaptive directions"))
        self.table = TargetTable(start.to(run.device), self.momentum)
        with torch.no_grad(), eval_mode(run.model):
            x = run.in_layout(run.train.floats(torch.arange(1)).to(run.device))
            width = features_of(run, run.model, x).shape[1]
        projector = two_layers(width, self.hidden, self.size)
        return {
            PROJECTOR: projector,
            PREDICTOR: two_layers(self.size, self.hidden, self.size),
            AVERAGE: copy.deepcopy(run.model).requires_grad_(False),
            AVERAGE_PROJECTOR: copy.deepcopy(projector).requires_grad_(False),
        }

    def frozen(self, run: Run) -> bool:
        """Whether the classifier alone is trained by now."""
        return run.progress >= 1 - self.probe

    def update(self, run: Run, batch: Batch) -> None:
        self.table.begin()
        super().update(run, batch)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        if self.frozen(run):
            with torch.no_grad(), eval_mode(run.model):
                features = features_of(run, run.model, batch.x)
            return self.probe_loss(run, features, batch)
        average, average_projector = run.modules[AVERAGE].train(), run.modules[AVERAGE_PROJECTOR].train()
        with torch.no_grad(), run.autocast():
            seen = F.normalize(average_projector(features_of(run, average, batch.x)).float(), dim=1)
        run.check_finite(seen)
        targets = self.table.visit(run, batch.index, seen)
        features = features_of(run, run.model, batch.x)
        with run.autocast():
            prediction = run.modules[PREDICTOR](run.modules[PROJECTOR](features)).float()
        return direction_losses(prediction, targets).mean() + self.probe_loss(run, features, batch)

    def probe_loss(self, run: Run, features: Float[Tensor, "B D"], batch: Batch) -> Float[Tensor, ""]:
        """The mean loss of the classifier on features without gradient; it trains the classifier alone."""
        features = features.detach()
        with run.autocast():
            logits = cast(Any, run.model).get_classifier()(features).float()
        return run.losses(Output(logits, features), batch).mean()

    def after_step(self, run: Run) -> None:
        if self.frozen(run):
            return
        self.table.commit()
        update_average(run.modules[AVERAGE], run.model, self.average)
        update_average(run.modules[AVERAGE_PROJECTOR], run.modules[PROJECTOR], self.average)

    def state_dict(self) -> dict[str, Any]:
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.load_state_dict(state)


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A linear layer, batch normalisation, ReLU and a linear layer: (B, inputs) -> (B, outputs)."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))
