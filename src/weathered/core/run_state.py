"""What a checkpoint holds of a run, so that it goes on bit for bit, and how a run takes it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.errors import CheckpointError
from weathered.core.facts import name_of
from weathered.core.roles import HasState

if TYPE_CHECKING:
    from weathered.core.run import Run


def state_of(run: Run) -> dict[str, Any]:
    """The state of a run; with several processes all must ask, since each has buffers and sums of its own."""
    several = run.fabric.world_size > 1
    return {
        "step": run.step,
        "epoch_losses": distributed.by_rank(run.fabric, run.epoch_losses),
        "buffers": [distributed.by_rank(run.fabric, buffer) for buffer in _buffers(run)] if several else [],
        "model": dict(run.model.state_dict()),
        "modules": {name: dict(module.state_dict()) for name, module in run.modules.items()},
        "optimizer": run.optimizer.state_dict(),
        "parts": {name: dict(part.state_dict()) for name, part in stateful(run).items()},
    }


def restore(run: Run, state: dict[str, Any]) -> None:
    """Put a run into a state that `state_of` gave; raises CheckpointError if it is that of other devices in number."""
    written, rank = len(state["epoch_losses"]), run.fabric.global_rank
    if written != run.fabric.world_size:
        raise CheckpointError(
            f"the checkpoint was written on {written} device(s), this run has {run.fabric.world_size}, so it would not "
            f"go on as it began. Use {written}, or delete the checkpoint to start over."
        )
    run.step = int(state["step"])
    run.epoch_losses = state["epoch_losses"][rank].double()
    run.model.load_state_dict(state["model"])
    for name, module in run.modules.items():
        module.load_state_dict(state["modules"][name])
    run.optimizer.load_state_dict(state["optimizer"])
    for name, part in stateful(run).items():
        part.load_state_dict(state["parts"][name])
    if state["buffers"]:
        for buffer, shares in zip(_buffers(run), state["buffers"], strict=True):
            buffer.copy_(shares[rank])


def stateful(run: Run) -> dict[str, HasState]:
    """Parts with state to save, torch modules among them, by a name that is stable for a recipe."""
    found = {"procedure": run.procedure, "loss": run.loss_part, "stepper": run.stepper}
    found |= {f"{slot}.{i}.{name_of(part)}": part for i, (slot, part) in enumerate(run.parts)}
    return {name: part for name, part in found.items() if isinstance(part, HasState)}


def _buffers(run: Run) -> list[Tensor]:
    """The buffers of all modules, of which each process has its own where they follow its share of the samples."""
    parts = [part for part in stateful(run).values() if isinstance(part, nn.Module)]
    return [buffer for module in (run.model, *run.modules.values(), *parts) for buffer in module.buffers()]
