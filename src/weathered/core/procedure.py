"""Procedure: what one training step does. The base is plain supervised training, and the tutorial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from weathered.core.batch import Batch
from weathered.core.facts import Traits
from weathered.core.roles import Part

if TYPE_CHECKING:
    from weathered.core.run import Run
    from weathered.data.dataset import Dataset
    from weathered.recipe import DataOptions


class Procedure(Part):
    """Minimise the run's objective on each batch. An exotic method overrides `loss`, rarely `update`.

    `traits.honours` names the slots that the procedure really calls; a part in any other slot is refused.
    """

    traits = Traits(honours=frozenset({"sampler", "transform", "loss", "reweight", "term", "stepper"}), per_pixel=True)

    def setup(self, run: Run) -> dict[str, nn.Module]:
        """Build what the method needs besides the model; the modules returned are trained and saved with it."""
        return {}

    def check_test(self, data: DataOptions, test: Dataset) -> None:
        """Called before a recipe is trained, with its data options and test set; refuses a test set seen already."""

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        """The scalar to minimise for a batch whose transforms have been applied."""
        return run.objective(run.forward(batch.x), batch)

    def update(self, run: Run, batch: Batch) -> None:
        """One optimisation step."""
        run.take_step(lambda: self.loss(run, batch))

    def after_step(self, run: Run) -> None:
        """Called after each step, for moving averages and the like."""

    def predictor(self, run: Run) -> nn.Module:
        """The network that predicts after training; its weights are what the run saves."""
        return run.model

    def leave(self, run: Run, folder: Path) -> None:
        """Called once training has ended, with the run's folder, for files besides weights and figures."""
