"""Susceptibility: how readily a network would fit random labels right now, a gauge of memorising without any truth.

Source: Forouzesh, Sedghi and Thiran, "Leveraging Unlabeled Data to Track Memorization", ICLR 2023.
    d_t     = CE(f; S~) before, minus after, one optimizer step on a batch S~ of inputs under random labels
    zeta(t) = (d_1 + ... + d_t) / t
The step is taken on copies, once at the start of each epoch; both losses are those of training mode, where dropout
draws a new mask for each. Labels are uniform over all K classes, so 1 / K of them are right by chance.
Limits: without gradient or learning rate d = 0; for plain gradient descent of small rate, d = lr |gradient|^2.
Among finished networks take those of high training accuracy and low zeta; low zeta alone is that of a network which
has learned nothing. Networks are comparable when they share the loss, the inputs of the probe and, unless the probe
has a rate of its own, the optimizer, its rate and its schedule.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weathered.core.auxiliary import augmented
from weathered.core.facts import Traits
from weathered.core.predict import device_of
from weathered.core.rng import derive_seed, generator
from weathered.core.roles import Part

if TYPE_CHECKING:
    from weathered.core.run import Run

Region = Literal[1, 2, 3, 4, "undecided"]


def random_labels(size: int, num_classes: int, rng: torch.Generator) -> Int[Tensor, "size"]:
    """Labels (size,) int64, uniform on 0 .. num_classes - 1. Raises ValueError for fewer than 2 classes."""
    if num_classes < 2:
        raise ValueError(f"random labels need at least 2 classes, got {num_classes}")
    return torch.randint(num_classes, (size,), generator=rng)


def probe(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Int[Tensor, "B"],
    *,
    probe_lr: float | None = None,
    to_logits: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """How far one optimizer step on a batch would lower its mean cross entropy, in nats; the step is not kept.

    model: maps inputs (B, ...) to logits (B, K). optimizer: of its parameters; its momentum and weight decay act as in
    any step, without a closure. inputs (B, ...), labels (B,) int64 in [0, K), drawn by `random_labels`.
    probe_lr: take the step by plain gradient descent of this rate instead, so that networks trained at different rates
    can be compared. to_logits: applied to the model's output, for losses that train with a scale of their own.

    Model and optimizer are copied, both by copy.deepcopy, and only the copies are stepped: weights, buffers, gradients,
    modes, optimizer state and the state of torch's generators stay as they are, also on error. Under mixed precision
    call it inside torch.autocast and leave the gradient scaler out.
    Returns the drop: positive where the labels are fitted, 0 for a frozen model; NaN, with a warning, where a loss is
    not finite.
    Raises ValueError for fewer than 2 classes, an empty batch, labels that do not fit, an optimizer of other
    parameters, or a probe_lr that is not >= 0 and finite. Source: Forouzesh et al., ICLR 2023.
    """
    _check_probe_lr(probe_lr)
    if len(labels) != len(inputs) or not len(inputs):
        raise ValueError(f"a probe needs one label for each input, at least one, got {len(labels)} and {len(inputs)}")
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if own and not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer holds no parameter of the model, so its step would change nothing")
    twin, stepper = copy.deepcopy((model, optimizer))
    twin.train()
    if probe_lr is not None:
        stepper = torch.optim.SGD(twin.parameters(), probe_lr)
    with _torch_state_kept(device_of(model)):
        stepper.zero_grad(set_to_none=True)
        with torch.enable_grad():
            before = _mean_loss(twin, inputs, labels, to_logits)
            if before.requires_grad:
                before.backward()
        stepper.step()
        # else the new weights would meet the half-precision copies that autocast made of the old ones
        torch.clear_autocast_cache()
        with torch.no_grad():
            after = _mean_loss(twin, inputs, labels, to_logits)
    drop = float(before.detach().double() - after.double())
    if not math.isfinite(drop):
        warnings.warn(
            f"the loss of the susceptibility probe is {float(before.detach()):g} before and {float(after):g} after its "
            "step; this probe is recorded as NaN and left out of the mean",
            stacklevel=2,
        )
        return math.nan
    return drop


def _check_probe_lr(probe_lr: float | None) -> None:
    if probe_lr is not None and not (probe_lr >= 0 and math.isfinite(probe_lr)):
        raise ValueError(f"probe_lr must be >= 0 and finite, got {probe_lr}")


def _mean_loss(
    model: nn.Module, inputs: Tensor, labels: Int[Tensor, "B"], to_logits: Callable[[Tensor], Tensor] | None
) -> Float[Tensor, ""]:
    logits = model(inputs)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"a probe needs logits (B, K) of at least 2 classes, got shape {tuple(logits.shape)}")
    if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
        raise ValueError(f"labels must be in [0, {logits.shape[1] - 1}], got {int(labels.min())}..{int(labels.max())}")
    return cross_entropy(logits if to_logits is None else to_logits(logits), labels)


@contextmanager
def _torch_state_kept(device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and of this device as they were, afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def running_mean(drops: Sequence[float], official_mean: bool = False) -> list[float]:
    """Susceptibility after each probe: the mean of all drops so far, in nats.

    drops: one for each probe in order; those that are not finite are left out, and before the first finite one the
    mean is NaN. official_mean: as in the authors' plotting code, which leaves the first drop out of the sum and divides
    by the number of all the same, so that it begins at 0.
    Returns as many values as there are drops.
    """
    values = np.asarray(drops, dtype=np.float64)
    finite = np.isfinite(values)
    total, count = np.cumsum(np.where(finite, values, 0.0)), np.cumsum(finite)
    if official_mean and finite.any():
        total = total - values[finite.argmax()]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).tolist()


def regions(train_accuracy: Sequence[float], zeta: Sequence[float]) -> list[Region]:
    """Where each of several networks stands when both axes are cut at their means.

    train_accuracy: on the given labels, wrong ones included. zeta: susceptibility. One finite value each per network.
    Returns, in the order given: 1 high accuracy and low zeta (take these), 2 both high, 3 both low, 4 low accuracy and
    high zeta. A tie with the mean counts against the network: as low accuracy, as high zeta. All are "undecided" where
    there is one network or an axis on which all are equal.
    Raises ValueError if lengths differ, nothing is given or a value is not finite.
    Source: Forouzesh et al., ICLR 2023, authors' code.
    """
    accuracy, gauge = np.asarray(train_accuracy, dtype=np.float64), np.asarray(zeta, dtype=np.float64)
    if accuracy.ndim != 1 or accuracy.shape != gauge.shape or not len(accuracy):
        raise ValueError(
            f"regions need one training accuracy and one susceptibility per network, got shapes {accuracy.shape} and "
            f"{gauge.shape}"
        )
    for name, values in (("train_accuracy", accuracy), ("zeta", gauge)):
        if not np.isfinite(values).all():
            place = int((~np.isfinite(values)).argmax())
            raise ValueError(f"{name} must be finite, got {values[place]} at position {place}; leave that network out")
    if np.ptp(accuracy) == 0 or np.ptp(gauge) == 0:
        return ["undecided"] * len(accuracy)
    # exact sums, whose last digit does not depend on the order of the networks
    high = accuracy > math.fsum(accuracy) / len(accuracy)
    low = gauge < math.fsum(gauge) / len(gauge)
    table: dict[tuple[bool, bool], Region] = {(True, True): 1, (True, False): 2, (False, True): 3, (False, False): 4}
    return [table[pair] for pair in zip(high.tolist(), low.tolist(), strict=True)]


class Susceptibility(Part):
    """Probe the run's network at the start of each epoch; training goes on as if nothing had been done.

    batch >= 1: inputs of one probe, drawn anew each time; fewer, with a warning, where there are fewer. probe_lr: the
    rate of the probe's own plain gradient descent; None for the run's optimizer as it stands. official_mean: see
    `running_mean`. pool: name of auxiliary data whose inputs are used; None for the training inputs. The labels of
    neither are looked at: each input has a random one, which it keeps. Transforms that leave labels alone are applied.

    The cross entropy is that of the probabilities which the run's loss trains. Every process probes the same batch, of
    which the first one's drop is recorded. `drops` has one value per epoch; `metrics` gives `susceptibility`, the mean
    so far, and `susceptibility_drop`. Raises ValueError outside these ranges.
    """

    def __init__(
        self,
        batch: int = 128,
        probe_lr: float | None = None,
        official_mean: bool = False,
        pool: str | None = None,
    ):
        _check_probe_lr(probe_lr)
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.batch, self.probe_lr, self.official_mean, self.pool = batch, probe_lr, official_mean, pool
        self.drops: list[float] = []
        if pool is not None:
            self.traits = Traits(needs={f"aux:{pool}": "it probes with these inputs"})

    def before_epoch(self, run: Run) -> None:
        data = run.train if self.pool is None else run.aux_data[self.pool]
        if len(data) < self.batch:
            warnings.warn(f"{data.name} has {len(data)} inputs, a probe of {self.batch} takes them all", stacklevel=2)
        rows = torch.randperm(len(data), generator=generator(run.seed, "susceptibility batch", run.epoch))[: self.batch]
        labels = random_labels(len(data), run.train.num_classes, generator(run.seed, "susceptibility labels"))[rows]
        x = augmented(run, data.inputs.fetch(rows), rows, "susceptibility", shared=True)
        with _torch_state_kept(run.device), run.autocast():
            torch.manual_seed(derive_seed(run.seed, "susceptibility layers", run.epoch))
            drop = probe(
                run.model,
                run.optimizer,
                x,
                labels.to(run.device),
                probe_lr=self.probe_lr,
                to_logits=run.test_logits,
            )
        # an epoch that is begun again, after an error, has its probe again
        self.drops = [*self.drops[: run.epoch], drop]

    def metrics(self) -> dict[str, float]:
        if not self.drops:
            return {}
        zeta = running_mean(self.drops, self.official_mean)[-1]
        return {"susceptibility": zeta, "susceptibility_drop": self.drops[-1]}

    def state_dict(self) -> dict[str, Any]:
        return {"drops": torch.tensor(self.drops, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drops = state["drops"].tolist()
