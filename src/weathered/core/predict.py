"""Predictions over a whole data set in chunks, in evaluation mode, leaving the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weathered.core.errors import NonFinite
from weathered.core.pixels import MASK, pixel_labels, pixel_logits
from weathered.data.dataset import Dataset, as_float

if TYPE_CHECKING:
    from weathered.core.run import Run


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode; afterwards each of its modules is back in the mode it was in, also on error."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes: the device of its first parameter, the CPU without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class AtTestTime(nn.Module):
    """A network at the precision of its run, giving the logits that it implies at test time; attacks ask this one.

    model: the run's own by default.
    """

    def __init__(self, run: Run, model: nn.Module | None = None):
        super().__init__()
        self.model, self.run = run.model if model is None else model, run

    def forward(self, x: Tensor) -> Float[Tensor, "B C"]:
        with self.run.autocast():
            return self.run.test_logits(self.model(self.run.in_layout(x)).float())


def prediction_of(model: nn.Module, run: Run) -> Callable[[Tensor], Tensor]:
    """Floats (B, ...) to test-time logits of a network in evaluation mode, at the precision of the run."""
    asked = AtTestTime(run, model)

    def predict(x: Tensor) -> Tensor:
        with torch.no_grad(), eval_mode(model):
            return asked(x.to(run.device))

    return predict


@torch.no_grad()
def outcomes(run: Run, dataset: Dataset) -> tuple[Float[Tensor, "M C"], Int[Tensor, "M"]]:
    """Test-time logits and labels of all samples of a data set, or of all its labelled pixels, in order."""
    logits = run.predict(dataset)
    if not dataset.is_segmentation:
        return logits, dataset.labels
    mask = dataset.extra[MASK]
    return pixel_logits(logits, mask), pixel_labels(mask)


@torch.no_grad()
def predict_logits(
    model: nn.Module, dataset: Dataset, batch_size: int = 1024, run: Run | None = None
) -> Float[Tensor, "N C"]:
    """Logits (N, C) float32 on the CPU, computed in chunks of `batch_size`.

    run: gives device, precision and memory layout; the CPU in float32 without.
    Raises NonFinite naming the row whose logits are not finite.
    """
    device = device_of(model)
    layout = run is not None and run.settings.channels_last and dataset.is_image
    chunks = []
    with eval_mode(model), run.autocast() if run is not None else nullcontext():
        for rows in torch.arange(len(dataset)).split(batch_size):
            x = as_float(dataset.inputs.fetch(rows).to(device))
            logits = model(x.contiguous(memory_format=torch.channels_last) if layout else x).float().cpu()
            if not torch.isfinite(logits).all():
                row = int(rows[0]) + int((~torch.isfinite(logits)).any(1).nonzero()[0])
                raise NonFinite(f"{dataset.name}: the model's logits for row {row} are not finite.")
            chunks.append(logits)
    return torch.cat(chunks) if chunks else torch.zeros(0, 0)
