"""Settings of a run: how long, how fast, with what optimizer. Everything a method does not decide."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Settings:
    """How a run trains.

    epochs: passes over the training set. batch_size: over all devices together. lr: peak learning rate.
    lr_samples: `lr` is that of a batch of so many samples, and the peak rate is in proportion to batch_size.
    optimizer: sgd, adam or adamw. momentum: of sgd, or beta1 of adam where it differs from 0.9.
    schedule: cosine to 0, step (a tenth at 1/2 and 3/4 of training), or constant. warmup: share of training with a
    linearly rising rate. evaluations: how often the test set is scored, the last epoch always included.
    precision: 32-true or bf16-mixed. channels_last: memory layout of images and convolutions.
    workers: processes that decode data which do not fit in memory. checkpoint_seconds: at least this long between
    two checkpoints, 0 for one after every step.
    no_bias_decay: no weight decay on biases and on parameters of normalisation.
    Raises ValueError naming the field and its legal range.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.05
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.0
    seed: int = 0
    evaluations: int = 10
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = False
    workers: int = 2
    checkpoint_seconds: float = 20.0
    lr_samples: int | None = None
    no_bias_decay: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr_samples is not None and self.lr_samples < 1:
            raise ValueError(f"lr_samples must be at least 1, got {self.lr_samples}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be > 0 and finite, got {self.lr}")
        for name in ("weight_decay", "workers", "evaluations", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name, upper in (("momentum", 1), ("warmup", 1)):
            if not 0 <= getattr(self, name) < upper:
                raise ValueError(f"{name} must be in [0, {upper}), got {getattr(self, name)}")
        choices = {
            "optimizer": ("sgd", "adam", "adamw"),
            "schedule": ("cosine", "step", "constant"),
            "precision": ("32-true", "bf16-mixed"),
        }
        for name, legal in choices.items():
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} must be one of {', '.join(legal)}, got '{getattr(self, name)}'")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @property
    def peak_lr(self) -> float:
        """The largest learning rate of training: `lr`, in proportion to the batch where `lr_samples` is given."""
        return self.lr if self.lr_samples is None else self.lr * self.batch_size / self.lr_samples

    def learning_rate(self, progress: float, step: float = 0.0) -> float:
        """The learning rate at `progress` in [0, 1) of training.

        step: the share of training that one step makes. In warm-up the rate is that at the end of the step: of n
        steps the first has 1/n of the full rate and the last all of it.
        """
        if progress < self.warmup:
            return self.peak_lr * min((progress + step) / self.warmup, 1.0)
        done = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "cosine":
            return self.peak_lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return self.peak_lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
        return self.peak_lr

    def build_optimizer(
        self, parameters: Sequence[nn.Parameter], undecayed: Collection[nn.Parameter] = ()
    ) -> torch.optim.Optimizer:
        """The optimizer of all parameters. undecayed: those of them that get no weight decay."""
        # tensors compare by value, so they are told apart by identity
        spared = {id(parameter) for parameter in undecayed}
        groups = [{"params": [p for p in parameters if id(p) not in spared], "weight_decay": self.weight_decay}]
        if spared:
            groups.append({"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0})
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, self.peak_lr, momentum=self.momentum, nesterov=self.nesterov)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, self.peak_lr, betas=(self.momentum, 0.999))
