"""Distillation: learn from the labels and from the softened predictions of a trained teacher.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, in the form of the code of He et al., "Bag
of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019. For logits z of the student, r of the
teacher, temperature T and weight h of the hard labels:

    L = h objective(z, y) + (1 - h) T^2 CE(softmax(r / T), softmax(z / T)).

The paper writes the sum without weights. T^2 keeps the gradient of the second part from vanishing as 1 / T^2; as T
grows it tends to ((z - mean z) - (r - mean r)) / C. The cross entropy is the divergence plus the entropy of the
teacher, which has no gradient, so at its best it is not 0. Limits: h = 1 is training without a teacher; T = 1 and
z = r leave no gradient in the second part. The teacher sees the same batch, mixed if the batch is, in evaluation mode.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weathered.core.batch import Batch
from weathered.core.errors import DataError, Incompatible
from weathered.core.facts import Traits
from weathered.core.objective import logits_for_test
from weathered.core.procedure import Procedure
from weathered.nn.two_towers import TwoTowers
from weathered.procedures.base import check_range

if TYPE_CHECKING:
    from weathered.core.run import Run
    from weathered.data.dataset import Dataset
    from weathered.recipe import DataOptions


def soft_cross_entropy(
    logits: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], temperature: float
) -> Float[Tensor, "B"]:
    """T^2 times the cross entropy of softmax(logits / T) against softmax(teacher / T), in nats for each sample.

    logits, teacher (B, C), any real numbers; gradient flows to logits alone. temperature T > 0.
    Raises ValueError for another temperature or unequal shapes.
    """
    _check_temperature(temperature)
    if logits.shape != teacher.shape:
        raise ValueError(
            f"logits and those of the teacher must have one shape, got {tuple(logits.shape)} and {tuple(teacher.shape)}"
        )
    target = (teacher.detach() / temperature).softmax(1)
    return temperature**2 * F.cross_entropy(logits / temperature, target, reduction="none")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}")


class Distillation(Procedure):
    """Train on labels and on what the network of a finished run says of the same batch.

    teacher: the folder of a finished run on the same classes and inputs. hard_weight in [0, 1]: h, what the objective
    on the labels counts for. temperature > 0: T, which softens both predictions.
    Raises ValueError for arguments out of range, and in `setup` DataError if there is no such run, Incompatible if its
    classes or inputs are others. A recipe whose test rows the teacher was trained on is refused as well, since what it
    says of their like is learned from them. The teacher is read again when a run goes on, and is not saved with it.
    """

    traits = Traits(honours=frozenset({"sampler", "transform", "loss", "reweight", "term", "stepper"}))

    def __init__(self, teacher: str, hard_weight: float = 0.5, temperature: float = 20.0):
        check_range("hard_weight", hard_weight, 0 <= hard_weight <= 1, "[0, 1]")
        _check_temperature(temperature)
        self.teacher, self.hard_weight, self.temperature = str(teacher), hard_weight, temperature

    def setup(self, run: Run) -> dict[str, nn.Module]:
        from weathered.loaded_run import load_run
        from weathered.training import learner_of

        if not (Path(self.teacher) / "run.json").is_file():
            raise DataError(
                f"there is no run in {self.teacher} to learn from. Train a teacher first and name its folder."
            )
        loaded = load_run(self.teacher)
        embeds = isinstance(loaded.model, TwoTowers)
        if learner_of(loaded.recipe) is not None or loaded.splits.train.is_segmentation or embeds:
            raise Incompatible(
                f"distillation needs a teacher that gives one softmax for each sample, {self.teacher} does not. Remove "
                "it, or name another run."
            )
        for what, own, others in (
            ("classes", run.train.class_names, loaded.splits.train.class_names),
            ("input shape", tuple(run.train.inputs.shape), tuple(loaded.splits.train.inputs.shape)),
        ):
            if own != others:
                raise Incompatible(
                    f"distillation needs a teacher of the same {what}: {self.teacher} has {_shown(others)}, the run "
                    f"has {_shown(own)}. Remove distillation, or name another teacher."
                )
        # no module of the run: it is neither trained nor saved
        self.network = loaded.model.to(run.device).requires_grad_(False).eval()
        self._loss = loaded.run.loss_part
        self._taught = loaded.splits.train.rows_in_source, loaded.recipe.data
        return {}

    def check_test(self, data: DataOptions, test: Dataset) -> None:
        from weathered.data.overlap import trained_on

        if seen := trained_on(test, data, *self._taught):
            way_out = (
                "Leave distillation out where folds of the training set are held out."
                if data.fold is not None
                else "Train both with one --test, or with one --data-seed and several --seed."
            )
            raise Incompatible(
                f"{seen} of the {len(test)} test rows were training rows of the teacher in {self.teacher}, so its "
                f"student would be scored on what it was told. {way_out}"
            )

    @torch.no_grad()
    def teach(self, run: Run, x: Tensor) -> Float[Tensor, "B C"]:
        """The teacher's logits of a batch (B, ...), in evaluation mode and float32."""
        with run.autocast():
            return logits_for_test(self._loss, self.network(x).float())

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        output = run.forward(batch.x)
        objective = run.objective(output, batch)
        if self.hard_weight == 1:
            return objective
        soft = soft_cross_entropy(run.test_logits(output.logits), self.teach(run, batch.x), self.temperature)
        return self.hard_weight * objective + (1 - self.hard_weight) * soft.mean()


def _shown(value: tuple) -> str:
    shown = ", ".join(map(str, value[:4]))
    return f"{len(value)} ({shown}{', ...' if len(value) > 4 else ''})" if isinstance(value[0], str) else str(value)
