"""Evidence from a model: logits and features of data of any length, block by block, in evaluation mode."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from weathered.core.errors import NonFinite
from weathered.core.predict import device_of, eval_mode
from weathered.data.dataset import Dataset, as_float
from weathered.scores.base import Evidence, LinearHead


def batches(data: Dataset | Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Inputs as models receive them, `batch_size` at a time; uint8 images become float32 in [0, 1]."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    fetch = data.inputs.fetch if isinstance(data, Dataset) else lambda rows: data[rows]
    for rows in torch.arange(len(data)).split(batch_size):
        if len(rows):
            yield as_float(fetch(rows).to(device))


def stream(
    model: nn.Module, data: Dataset | Tensor, batch_size: int = 256, device: torch.device | str = "cpu"
) -> Iterator[Evidence]:
    """The evidence of `batch_size` inputs at a time, in the order of the data, for data of any length.

    model: logits come from `forward_head(forward_features(x))`, features from the same with `pre_logits=True`; a
    model without these gives logits only. One with a class of outliers gives their logits by
    `outlier_logits(features)`. The model computes where its parameters are, in evaluation mode; between two blocks and
    after an error it is in the mode it was in. device: where the evidence is kept.
    Raises NonFinite naming the first row whose logits or features are not finite.
    """
    head, start, place = None, 0, device_of(model)
    for number, x in enumerate(batches(data, batch_size, place)):
        with eval_mode(model), torch.no_grad():
            logits, features, outlier = _outputs(model, x)
            if number == 0 and features is not None:
                head = _head(model, features, logits, device)
        for name, values in (("logits", logits), ("features", features), ("outlier logits", outlier)):
            if values is not None and not torch.isfinite(values).all():
                row = start + int((~torch.isfinite(values)).view(len(values), -1).any(1).nonzero()[0])
                raise NonFinite(f"the model's {name} for row {row} are not finite; repair the input or the weights.")
        start += len(x)
        features, outlier = (None if values is None else values.to(device) for values in (features, outlier))
        yield Evidence(logits.to(device), features, head, model, x, outlier)


def extract(
    model: nn.Module, data: Dataset | Tensor, batch_size: int = 256, device: torch.device | str = "cpu"
) -> Evidence:
    """The evidence of all inputs at once: logits, features and outlier logits, head, the model and `data` itself.

    Arguments, modes and errors as in `stream`. Memory: the result and one block. Raises ValueError without any input.
    """
    if not len(data):
        raise ValueError("expected at least one input, got none")
    columns: list[Tensor | None] = [None, None, None]
    head, start = None, 0
    for block in stream(model, data, batch_size, device):
        head = block.head
        values = (block.logits, block.features, block.outlier_logits)
        if start == 0:
            columns = [None if v is None else v.new_empty(len(data), *v.shape[1:]) for v in values]
        for column, value in zip(columns, values, strict=True):
            if column is not None and value is not None:
                column[start : start + len(value)] = value
        start += batch_size
    return Evidence(columns[0], columns[1], head, model, data, columns[2])


def has_outlier_class(model: nn.Module) -> bool:
    """Whether the model has a logit for outliers beside those of its classes."""
    return hasattr(model, "outlier_logits")


def _outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        return _wide(model(x)), None, None
    network = cast(Any, model)
    stages = network.forward_features(x)
    features = network.forward_head(stages, pre_logits=True)
    outlier = _wide(network.outlier_logits(features)) if has_outlier_class(model) else None
    return _wide(network.forward_head(stages)), _wide(features), outlier


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _head(model: nn.Module, features: Tensor, logits: Tensor, device: torch.device | str) -> LinearHead | None:
    layer = cast(Any, model).get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(layer, nn.Linear):
        return None
    # a model may scale or mix what its last layer says, and then the layer alone does not explain the logits
    explained = torch.allclose(layer(features.to(layer.weight)).to(logits), logits, rtol=1e-2, atol=1e-2)
    return LinearHead.of(layer, device) if explained else None
