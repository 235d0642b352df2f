"""What mixing adds to a training step of cnn_small: MultiMix against a plain step, AutoMix against one with mixup."""

from collections.abc import Callable
from typing import Any

import torch

from timing import Row, side_by_side
from weathered import AutoMix, Dataset, MixUp, MultiMix, Run, Settings, build_model
from weathered.core.fit import train_step

BATCH, SIDE, CLASSES = 128, 32, 10
MULTIMIX_SHARE = 0.15
"""Of a plain step that 1,000 mixtures may add."""
AUTOMIX_TIMES = 2.2
"""Steps with mixup that one of AutoMix may take, as OpenMixup reports."""


def rows() -> list[Row]:
    plain, mixed = _step(), _step(transforms=[MixUp()])
    pairs = _step(procedure=MultiMix(num_mixed=2, clean_weight=0.0))
    whole = _step(procedure=MultiMix(clean_weight=0.0))
    auto = _step(procedure=AutoMix())
    size = f"{BATCH}x3x{SIDE}x{SIDE}"
    limit = 1 / (1 + MULTIMIX_SHARE)
    return [
        side_by_side(f"step of MultiMix, 1000 pairs, {size}", "plain step", pairs, plain, limit, 15),
        side_by_side(f"step of MultiMix, 1000 mixtures of all, {size}", "plain step", whole, plain, limit, 15),
        side_by_side(f"step of AutoMix, {size}", "step with mixup", auto, mixed, 1 / AUTOMIX_TIMES, 15),
    ]


def _step(**parts: Any) -> Callable[[], None]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=rng)
    data = Dataset.of(images, torch.arange(2 * BATCH) % CLASSES)
    settings = Settings(epochs=1000, batch_size=BATCH)
    run = Run(build_model("cnn_small", data), data, settings=settings, **parts)
    index = torch.arange(BATCH)
    images = run.train.inputs.fetch(index)

    def step() -> None:
        train_step(run, index, images)

    return step
