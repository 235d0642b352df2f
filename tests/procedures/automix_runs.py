"""A run of AutoMix on small images, with a batch."""

from typing import Any

import torch

from weathered.core.batch import Batch
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.procedures.automix import AutoMix

SGD = Settings(epochs=2, batch_size=12, lr=0.05)


def make(images: Dataset, procedure: AutoMix, norm: str = "none", **parts) -> tuple[Any, Batch]:
    """A run and its first 12 rows as a batch; typed loosely, as tests look inside the modules."""
    model = build_model(f"cnn_small:width=8,norm={norm}", images)
    run = Run(model, images, procedure=procedure, settings=SGD, **parts)
    return run, Batch.of(images.floats(torch.arange(12)), images.labels[:12])
