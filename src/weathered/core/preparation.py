"""From rows of a data set to the batch that a step is taken on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.facts import name_of
from weathered.core.pixels import MASK, pixel_labels
from weathered.core.target import Target
from weathered.data.dataset import as_float

if TYPE_CHECKING:
    from weathered.core.run import Run


def prepared(run: Run, x: Tensor, labels: Tensor, index: Tensor) -> Batch:
    """A batch on the device with all transforms applied; images become floats before the first that needs it.

    x (B, ...), labels (B,) and index (B,): of training rows. The target of segmentation data is that of the labelled
    pixels, read after the transforms.
    """
    extra = {name: column[index].to(run.device) for name, column in run.train.extra.items()}
    batch = Batch(x.to(run.device), Target.hard(labels.to(run.device)), index.to(run.device), extra)
    seen: Counter[str] = Counter()
    for part in run.transforms:
        if not getattr(part, "accepts_uint8", False):
            batch = batch.replace(x=as_float(batch.x))
        name = name_of(part)
        seen[name] += 1
        run.used[id(part)] += 1
        batch = part(batch, run.generator(f"{name}.{seen[name]}"))
    if MASK in batch.extra:
        batch = batch.replace(target=Target.hard(pixel_labels(batch.extra[MASK])))
    return batch.replace(x=run.in_layout(as_float(batch.x)))
