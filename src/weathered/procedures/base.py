"""What procedures with two networks share: the second network, the schedule of dropping, and the small losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.facts import Traits, name_of
from weathered.core.procedure import Procedure
from weathered.core.roles import Output

if TYPE_CHECKING:
    from weathered.core.run import Run

PEER = "peer"
"""The name of the second network among the modules of a run."""


def check_range(name: str, value: float, legal: bool, interval: str) -> None:
    """Raise ValueError with the value and the legal interval unless `legal`."""
    if not legal:
        raise ValueError(f"{name} must be in {interval}, got {value}")


def keep_rate(progress: float, forget_rate: float, ramp: float, exponent: float = 1.0) -> float:
    """The share 1 - R of a batch that is kept at `progress` of training.

    R rises linearly from 0 at progress 0 to forget_rate ** exponent at progress `ramp`, and is forget_rate afterwards;
    with an exponent other than 1 it therefore jumps at the end of the ramp. ramp = 0 drops from the start.
    progress and ramp in [0, 1], forget_rate in [0, 1), exponent > 0; raises ValueError otherwise.
    """
    check_range("progress", progress, 0 <= progress <= 1, "[0, 1]")
    check_range("forget_rate", forget_rate, 0 <= forget_rate < 1, "[0, 1)")
    check_range("ramp", ramp, 0 <= ramp <= 1, "[0, 1]")
    check_range("exponent", exponent, exponent > 0, "(0, infinity)")
    if ramp == 0 or progress > ramp:
        return 1 - forget_rate
    return 1 - forget_rate**exponent * progress / ramp


def smallest(losses: Float[Tensor, "B"], rate: float) -> Bool[Tensor, "B"]:
    """Mark the floor(rate * B) smallest losses, at least one; equal losses are taken in the order of the batch.

    losses (B,), finite: NaN would sort last and be dropped unseen. rate in [0, 1].
    Raises ValueError if a loss is not finite.
    """
    if not bool(torch.isfinite(losses).all()):
        raise ValueError(
            f"losses must be finite to be ranked, position {int((~losses.isfinite()).nonzero()[0])} is not"
        )
    # 10 * (1 - 0.9) is one sample, though floating point says 0.99...
    count = max(int(rate * len(losses) + 1e-6), 1)
    kept = torch.zeros(len(losses), dtype=torch.bool, device=losses.device)
    kept[losses.detach().argsort(stable=True)[:count]] = True
    return kept


def kept_mean(run: Run, losses: Float[Tensor, "B"], kept: Bool[Tensor, "N"]) -> Float[Tensor, ""]:
    """This process's share of the mean over the kept rows; the mean over processes is that mean.

    losses: of this process's rows. kept: marks on the rows of all processes, in the order of ranks.
    """
    # gradients are averaged over devices, which keep different numbers of rows
    return losses[distributed.local(run.fabric, kept)].sum() * (run.fabric.world_size / int(kept.sum()))


class TwoNetworks(Procedure):
    """Two networks of one architecture under one optimizer; the run's model is the first and the one that predicts.

    forget_rate, ramp, exponent: how much of a batch is dropped, see `keep_rate`. A method names the stream from which
    the second network's weights are drawn, `peer_stream`, and overrides `loss`.
    Raises ValueError for arguments out of range, and in `setup` if both networks start from the same weights: they
    would agree for ever.
    """

    traits = Traits(
        needs={"hard_target": "keeps samples with small loss against their one given label"},
        honours=frozenset({"sampler", "transform", "loss", "reweight", "stepper"}),
    )
    peer_stream: str

    def __init__(self, forget_rate: float, ramp: float, exponent: float):
        keep_rate(0.0, forget_rate, ramp, exponent)
        self.forget_rate, self.ramp, self.exponent = forget_rate, ramp, exponent

    def setup(self, run: Run) -> dict[str, nn.Module]:
        peer = run.fresh_model(self.peer_stream).to(run.device)
        pairs = zip(run.model.parameters(), peer.parameters(), strict=True)
        if all(torch.equal(one, other) for one, other in pairs):
            raise ValueError(
                f"both networks of {name_of(self)} start from the same weights and would agree for ever; "
                "give the run a model function that draws its weights from the seed it is called with"
            )
        return {PEER: peer}

    def outputs(self, run: Run, batch: Batch) -> tuple[Output, Output]:
        """What both networks say of a batch, in training mode."""
        peer = run.modules[PEER].train()
        return run.forward(batch.x), run.forward(batch.x, peer)
