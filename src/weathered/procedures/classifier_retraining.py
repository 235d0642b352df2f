"""Classifier re-training (cRT): learn features on the data as they are, then the classifier alone, on balanced rows.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, section 4.1.
Before `start` a step is plain training; from then on features stand still, dropout and batch statistics included, and
the classifier alone learns. The balance comes from a sampler or weights that begin at the same time.
Limits: start = 1 is plain training; start = 0 trains a classifier on the features of an untrained network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.rng import derive_seed
from weathered.core.roles import Output
from weathered.nn.network import seeded
from weathered.procedures.base import check_range, features_of

if TYPE_CHECKING:
    from weathered.core.run import Run


class ClassifierRetraining(Procedure):
    """Plain training until `start`, then the classifier alone on features that stand still.

    start in [0, 1]: progress of training. reset: begin the classifier anew, as the authors do, who also begin the
    learning rate anew; here its schedule goes on, so that a new classifier needs a rate that is still high.
    Put `class-balanced-sampling` with the same `start` beside it, or take `crt`, which does.
    Raises ValueError for a start out of range.
    """

    traits = Traits(
        needs={"features": "trains the classifier on features that stand still"},
        honours=Procedure.traits.honours,
    )

    def __init__(self, start: float = 0.8, reset: bool = False):
        check_range("start", start, 0 <= start <= 1, "[0, 1]")
        self.start, self.reset, self.begun = start, reset, False

    def setup(self, run: Run) -> dict[str, nn.Module]:
        self.begun = False
        return {}

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        if run.progress < self.start:
            return super().loss(run, batch)
        classifier = cast(Any, run.model).get_classifier()
        if not self.begun:
            self.begun = True
            if self.reset:
                self._begin_anew(run, classifier)
        with torch.no_grad(), eval_mode(run.model):
            features = features_of(run, run.model, batch.x)
        with run.autocast():
            logits = classifier(features).float()
        return run.objective(Output(logits, features), batch)

    def _begin_anew(self, run: Run, classifier: nn.Module) -> None:
        with seeded(derive_seed(run.seed, "classifier re-training")):
            for module in classifier.modules():
                if hasattr(module, "reset_parameters"):
                    cast(Any, module).reset_parameters()
        for parameter in classifier.parameters():
            # what the old weights had gathered would push the new ones
            run.optimizer.state.pop(parameter, None)

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begun = state["begun"]
