"""What several processes share: gathered batches and averaged gradients, identities on one device.

Gradients are averaged explicitly after the backward pass instead of by hooks on one wrapped module, so that
second networks, inner loops and direct calls of `forward_features` are covered without further care.
Batch normalisation is not synchronised: each process uses the statistics of its own share. A checkpoint holds the
running statistics of all of them, a finished run those of the first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from weathered.core.errors import WeatheredError
from weathered.core.target import Target


def gather(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The batches of all processes, one after another in the order of ranks, without gradient."""
    tensor = tensor.detach()
    if fabric.world_size == 1:
        return tensor
    return cast(Tensor, fabric.all_gather(tensor)).flatten(0, 1)


def by_rank(fabric: Fabric, tensor: Tensor) -> Tensor:
    """A tensor of any shape (...) from each process: (P, ...) in the order of ranks, on the CPU, without gradient."""
    if fabric.world_size == 1:
        return tensor.detach().cpu()[None]
    return gather(fabric, tensor.to(fabric.device)[None]).cpu()


def gather_target(fabric: Fabric, target: Target) -> Target:
    """The targets of all processes as one, as `Target.cat` joins them: shorter mixtures are filled up with weight 0.

    Raises ValueError if soft ones differ in width.
    """
    if fabric.world_size == 1:
        return target
    # a transform that draws whether to mix does so on each process by itself
    shape = torch.tensor([[len(target.labels), target.num_classes or 0]], device=target.labels.device)
    shapes = gather(fabric, shape).tolist()
    depth = max(number for number, _ in shapes)
    labels, weights = (
        gather(fabric, nn.functional.pad(tensor, (0, 0, 0, depth - len(tensor))).T.contiguous()).T
        for tensor in (target.labels, target.weights)
    )
    parts = zip(labels.tensor_split(len(shapes), 1), weights.tensor_split(len(shapes), 1), shapes, strict=True)
    return Target.cat([Target(own, share, width or None) for own, share, (_, width) in parts])


def local(fabric: Fabric, tensor: Tensor) -> Tensor:
    """This process's share of a gathered tensor."""
    share = len(tensor) // fabric.world_size
    return tensor[fabric.global_rank * share : (fabric.global_rank + 1) * share]


def any_process(fabric: Fabric | None, flag: bool) -> bool:
    """Whether `flag` is true on any process; all must ask."""
    return any_of_each(fabric, [flag])[0]


def any_of_each(fabric: Fabric | None, flags: Sequence[bool]) -> list[bool]:
    """Whether each of `flags` is true on any process; all must ask, with equally many."""
    if fabric is None or fabric.world_size == 1:
        return list(flags)
    counts = torch.tensor([float(flag) for flag in flags], device=fabric.device)
    return [count > 0 for count in cast(Tensor, fabric.all_reduce(counts, reduce_op="sum")).tolist()]


@contextmanager
def together(fabric: Fabric | None) -> Iterator[None]:
    """Code that does not communicate: where it fails on one process, all raise, instead of waiting for that one."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if any_process(fabric, failure is not None):
        raise failure or WeatheredError("another process has failed, see its message; this one stops too.")


def mean_over_ranks(fabric: Fabric, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean of a scalar over processes, whose gradient, once averaged over processes, is that of the mean."""
    if fabric.world_size == 1:
        return value
    total = cast(Tensor, fabric.all_reduce(value.detach().clone(), reduce_op="mean"))
    return value + (total - value.detach())


def average_gradients(fabric: Fabric, parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; a gradient missing on all of them stays missing."""
    if fabric.world_size == 1:
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=fabric.device)
    present = cast(Tensor, fabric.all_reduce(present, reduce_op="sum"))
    shared = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
    for dtype in {p.dtype for p in shared}:
        group = [p for p in shared if p.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group])
        flat = cast(Tensor, fabric.all_reduce(flat, reduce_op="mean"))
        for parameter, grad in zip(group, flat.split([p.numel() for p in group]), strict=True):
            parameter.grad = grad.view_as(parameter).clone()


def broadcast_weights(fabric: Fabric, modules: Sequence[nn.Module]) -> None:
    """Give all processes the weights and buffers of the first."""
    if fabric.world_size == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.copy_(cast(Tensor, fabric.broadcast(tensor.data)))
