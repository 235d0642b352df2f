"""What procedures share: a second network and the samples of small loss, and targets that follow the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weathered.core import distributed
from weathered.core.batch import Batch
from weathered.core.facts import Traits, name_of
from weathered.core.predict import eval_mode
from weathered.core.procedure import Procedure
from weathered.core.roles import Output
from weathered.core.target import Target
from weathered.core.target_table import TargetTable, certainty_weights, check_momentum, label_table

if TYPE_CHECKING:
    from weathered.core.run import Run

CHUNK = 512
"""Rows whose features are computed at a time."""

PEER = "peer"
"""The name of the second network among the modules of a run."""

MEMORISED = 0.99
"""Share of given labels reproduced in training from which the network has nothing left to correct."""


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


def features_of(run: Run, network: nn.Module, x: Tensor) -> Float[Tensor, "B D"]:
    """The pooled features of a network, in float32."""
    timm_like = cast(Any, network)
    with run.autocast():
        return timm_like.forward_head(timm_like.forward_features(x), pre_logits=True).float()


def training_features(run: Run) -> Iterator[tuple[Int[Tensor, "B"], Float[Tensor, "B D"]]]:
    """Rows and features of all training data, a chunk at a time, in evaluation mode and without transforms."""
    with torch.no_grad(), eval_mode(run.model):
        for rows in torch.arange(len(run.train)).split(CHUNK):
            yield rows, features_of(run, run.model, run.in_layout(run.train.floats(rows).to(run.device)))


def replace_classifier(network: nn.Module, classifier: nn.Module) -> None:
    """Put a classifier in the place of that which the network names by `get_classifier`."""
    old = cast(Any, network).get_classifier()
    place = next(name for name, module in network.named_modules() if module is old)
    parent, _, name = place.rpartition(".")
    setattr(network.get_submodule(parent), name, classifier)


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


class SelfAdaptive(Procedure):
    """Train against targets that move from the given labels to the network's averaged predictions.

    start in [0, 1): progress of training from which targets move. momentum in [0, 1]: of the targets. weighted:
    multiply losses by how certain the targets are. smoothing in [0, 1): start from smoothed labels. half: keep the
    targets in float16. A method adds to the losses by overriding `target_losses`, or to the whole by overriding `loss`.

    `targets` (N, C) holds the table, `corrected_labels()` its largest entries. The table is the same on all processes,
    and saved. Raises ValueError for arguments out of range.
    """

    traits = Traits(
        needs={
            "hard_target": "starts the target of a row from its one given label",
            "index": "keeps a target for each training row",
            "num_classes": "keeps a probability for each class",
        },
        honours=frozenset({"sampler", "transform", "loss", "stepper"}),
    )

    def __init__(
        self,
        start: float,
        momentum: float,
        weighted: bool = True,
        smoothing: float = 0.0,
        half: bool = False,
    ):
        check_momentum(momentum)
        check_range("start", start, 0 <= start < 1, "[0, 1)")
        check_range("smoothing", smoothing, 0 <= smoothing < 1, "[0, 1)")
        self.start, self.momentum, self.weighted, self.smoothing, self.half = start, momentum, weighted, smoothing, half

    def setup(self, run: Run) -> dict[str, nn.Module]:
        start = label_table(run.train.labels.to(run.device), run.train.num_classes, self.smoothing)
        self.table = TargetTable(start, self.momentum, self.half)
        self.adapting = False
        # hits and samples of the present epoch, against the given labels
        self.fitted = torch.zeros(2, dtype=torch.float64, device=run.device)
        return {}

    @property
    def targets(self) -> Float[Tensor, "N C"]:
        """The targets of all training rows."""
        return self.table.rows

    def corrected_labels(self) -> Int[Tensor, "N"]:
        """The class with the largest target of each training row."""
        return self.targets.argmax(1)

    def update(self, run: Run, batch: Batch) -> None:
        self.table.begin()
        super().update(run, batch)

    def loss(self, run: Run, batch: Batch) -> Float[Tensor, ""]:
        return self.adaptive_loss(run, run.forward(batch.x), batch)

    def adaptive_loss(self, run: Run, output: Output, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss of a batch against its given labels before `start`, against its moving targets afterwards."""
        if run.progress < self.start:
            self._count(run, output.logits, batch)
            return run.losses(output, batch).mean()
        self._warn_if_late(run)
        run.check_finite(output.logits)
        probability = run.test_logits(output.logits).detach().softmax(1)
        targets = self.table.visit(run, batch.index, probability)
        losses = self.target_losses(run, output, batch, targets)
        if not self.weighted:
            return losses.mean()
        weights = distributed.local(run.fabric, certainty_weights(run.gather(targets)))
        return (weights * losses).mean()

    def target_losses(
        self, run: Run, output: Output, batch: Batch, targets: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B"]:
        """The losses of a batch against its targets, before weights: those of the run's loss part."""
        return run.losses(output, batch.replace(target=Target.soft(targets)))

    def after_step(self, run: Run) -> None:
        self.table.commit()

    def _count(self, run: Run, logits: Float[Tensor, "B C"], batch: Batch) -> None:
        if run.step % run.steps_per_epoch == 0:
            self.fitted.zero_()
        hits = (logits.detach().argmax(1) == batch.target.single()).sum()
        self.fitted += torch.stack([hits.double(), hits.new_tensor(len(batch)).double()])

    def _warn_if_late(self, run: Run) -> None:
        if self.adapting:
            return
        self.adapting = True
        hits, seen = self.fitted.tolist()
        self.fitted.zero_()
        if seen and hits >= MEMORISED * seen and run.fabric.is_global_zero:
            warnings.warn(
                f"{name_of(self)}: at start={self.start:g} the network fits {hits / seen:.1%} of the given labels "
                "already; wrong ones are learned by heart then and will not be corrected. Lower start.",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        return {**self.table.state_dict(), "fitted": self.fitted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.table.load_state_dict(state)
        self.fitted.copy_(state["fitted"])
