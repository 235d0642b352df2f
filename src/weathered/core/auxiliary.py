"""Batches of auxiliary data: an endless shuffled stream, addressed by step, so that a resumed run sees the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.errors import DataError, SpecError
from weathered.core.facts import name_of, traits_of
from weathered.core.rng import generator
from weathered.core.spec import near
from weathered.core.target import Target
from weathered.data.dataset import Dataset, as_float

if TYPE_CHECKING:
    from weathered.core.run import Run


def stream_rows(length: int, start: int, count: int, seed: int, name: str) -> Int[Tensor, "count"]:
    """Positions start to start + count of an endless row of permutations of `length` rows, drawn from (seed, name).

    length >= 1. Every row appears once before any appears again.
    """
    if length < 1:
        raise ValueError(f"a stream needs at least one row, got {length}")
    found = []
    while count:
        cycle, offset = divmod(start, length)
        found.append(_order(length, seed, name, cycle)[offset : offset + count])
        start, count = start + len(found[-1]), count - len(found[-1])
    # a copy: what is kept must not change
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=4)
def _order(length: int, seed: int, name: str, cycle: int) -> Int[Tensor, "length"]:
    """One of the permutations; the last few are kept, since a step needs a few rows of one."""
    return torch.randperm(length, generator=generator(seed, "auxiliary", name, cycle))


def check_shapes(train: Dataset, aux: Mapping[str, Dataset]) -> None:
    """Raise DataError, naming both shapes, unless all auxiliary inputs have the shape of the training inputs."""
    for name, data in aux.items():
        if data.inputs.shape != train.inputs.shape:
            raise DataError(
                f"the auxiliary data '{name}' have inputs of shape {data.inputs.shape}, those of {train.name} are "
                f"{train.inputs.shape}"
                + ("; --image-size brings images to one size, load_auxiliary to one shape." if train.is_image else ".")
            )


def auxiliary_inputs(run: Run, name: str, size: int) -> Tensor:
    """This process's share (size / processes, ...) of the auxiliary inputs of a step, as floats on the run's device.

    size: inputs per step over all processes, a multiple of their number. Transforms that leave labels alone are
    applied, with draws of their own; others, such as mixing, are not. Calling it again in the same step gives the
    same rows.
    Raises SpecError if the run has no data of this name.
    """
    if name not in run.aux_data:
        raise SpecError(f"the run has no auxiliary data '{name}'.{near(name, run.aux_data)} Give --aux {name}=SOURCE.")
    data, processes = run.aux_data[name], run.fabric.world_size
    if size < 1 or size % processes:
        raise ValueError(f"size must be at least 1 and a multiple of the {processes} processes, got {size}")
    share = size // processes
    rows = stream_rows(len(data), run.step * size + run.fabric.global_rank * share, share, run.seed, name)
    return augmented(run, data.inputs.fetch(rows), rows, name)


def augmented(run: Run, x: Tensor, rows: Int[Tensor, "B"], name: str, shared: bool = False) -> Tensor:
    """Inputs (B, ...) after the run's transforms that leave labels alone, as floats on the run's device.

    rows (B,): their positions. name: of the draws. shared: the same draws on all processes.
    """
    x, rows = x.to(run.device), rows.to(run.device)
    batch, seen = Batch(x, Target.hard(torch.zeros_like(rows)), rows), Counter[str]()
    for part in run.transforms:
        seen[name_of(part)] += 1
        if traits_of(part).breaks or {"hard_target", "index"} & set(traits_of(part).needs):
            continue
        if not getattr(part, "accepts_uint8", False):
            batch = batch.replace(x=as_float(batch.x))
        stream = f"{name_of(part)}.{seen[name_of(part)]} on {name}"
        batch = part(batch, run.generator(stream, shared=shared))
    return run.in_layout(as_float(batch.x))
