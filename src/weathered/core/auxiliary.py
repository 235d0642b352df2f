"""Batches of auxiliary data: an endless shuffled stream, addressed by step, so that a resumed run sees the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.facts import name_of, traits_of
from weathered.core.rng import generator
from weathered.core.spec import near
from weathered.core.target import Target
from weathered.data.dataset import as_float

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
        order = torch.randperm(length, generator=generator(seed, "auxiliary", name, cycle))
        found.append(order[offset : offset + count])
        start, count = start + len(found[-1]), count - len(found[-1])
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


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
    x = data.inputs.fetch(rows).to(run.device)
    rows = rows.to(run.device)
    batch, seen = Batch(x, Target.hard(torch.zeros_like(rows)), rows), Counter[str]()
    for part in run.transforms:
        seen[name_of(part)] += 1
        if traits_of(part).breaks or {"hard_target", "index"} & set(traits_of(part).needs):
            continue
        if not getattr(part, "accepts_uint8", False):
            batch = batch.replace(x=as_float(batch.x))
        batch = part(batch, run.generator(f"{name_of(part)}.{seen[name_of(part)]} on {name}"))
    return run.in_layout(as_float(batch.x))
