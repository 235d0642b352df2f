"""What the robustness audit says of attacks by scores alone: how many inputs they fool, and with how many questions.

An input that is not fooled counts with all questions that it was asked. A fooling rate says little without the number
of questions and the size of the change, so the three stand together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weathered.attacks.base import Attack
from weathered.attacks.score_based import Attacked, ScoreAttack
from weathered.audit.result import Table
from weathered.stats import Estimate, mean_interval, proportion_interval


@dataclass(frozen=True, eq=False)
class Asked:
    """What one attack did to N inputs. attacked (N,): those that were right before. The others have 0 everywhere."""

    attacked: Bool[Tensor, "N"]
    fooled: Bool[Tensor, "N"]
    queries: Int[Tensor, "N"]
    perturbation: Float[Tensor, "N"]

    @classmethod
    def of(cls, found: Attacked | None, attacked: Bool[Tensor, "N"]) -> Asked:
        """found: of the attacked inputs, in their order; None where there are none."""
        size = len(attacked)
        fooled, queries, moved = torch.zeros(size).bool(), torch.zeros(size).long(), torch.zeros(size).double()
        if found is not None:
            fooled[attacked], queries[attacked], moved[attacked] = found.success, found.queries, found.perturbation
        return cls(attacked, fooled, queries, moved)

    @classmethod
    def joined(cls, parts: list[dict[str, Tensor]]) -> Asked:
        """From the pieces of an audit, as `tensors` gives them."""
        return cls(*(torch.cat([part[name] for part in parts]) for name in cls.__dataclass_fields__))

    def tensors(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def rate(self) -> Estimate:
        """The share of the attacked inputs that were fooled."""
        return proportion_interval(int(self.fooled.sum()), int(self.attacked.sum()))

    def mean_queries(self) -> Estimate:
        """Over the attacked inputs, fooled or not."""
        return mean_interval(self.queries[self.attacked].double().tolist())

    def mean_perturbation(self) -> Estimate:
        """255 times the mean absolute change, over the attacked inputs."""
        return mean_interval(self.perturbation[self.attacked].tolist())


def asked_summary(asked: Mapping[str, Asked]) -> tuple[dict[str, Estimate], dict[str, bool]]:
    """Figures by name, and whether higher is better for the network."""
    summary, higher = {}, {}
    for name, one in asked.items():
        if bool(one.attacked.any()):
            for figure, value, better in (
                (f"fooling rate of {name}", one.rate(), False),
                (f"average queries of {name}", one.mean_queries(), True),
                (f"mean absolute perturbation by {name}", one.mean_perturbation(), True),
            ):
                summary[figure], higher[figure] = value, better
    return summary, higher


def asked_tables(asked: Mapping[str, Asked], attacks: Mapping[str, Attack], what: str) -> tuple[Table, ...]:
    """One row for each attack; none without such attacks, or where nothing was attacked. what: images or clips."""
    rows = []
    for name, one in asked.items():
        attack = attacks[name]
        if bool(one.attacked.any()) and isinstance(attack, ScoreAttack):
            rate, queries, moved = one.rate(), one.mean_queries(), one.mean_perturbation()
            rows.append((name, *rate, queries.value, attack.queries, moved.value))
    if not rows:
        return ()
    columns = ("attack", "fooling rate", "low", "high", f"attacked {what}", "average queries", "most", "mean change")
    title = f"Attacks by scores alone: queries of all attacked {what}, mean absolute change of 255"
    return (Table(title, columns, tuple(rows)),)


def asked_notes(asked: Mapping[str, Asked], attacks: Mapping[str, Attack], what: str) -> list[str]:
    """What the figures prove and what not."""
    notes = []
    for name, one in asked.items():
        attack, total = attacks[name], int(one.attacked.sum())
        if not (total and isinstance(attack, ScoreAttack)):
            continue
        aim = " towards a class drawn at random" if attack.targeted else ""
        notes.append(
            f"{name} saw scores alone and fooled the network on {int(one.fooled.sum())} of {total} {what}{aim} with "
            f"{one.mean_queries().value:.0f} queries each on average, failures counted, at most {attack.queries}. So "
            "an attacker who may ask so often can do this; one who may ask more, or who sees gradients, may do more."
        )
    return notes


def asked_columns(asked: Mapping[str, Asked]) -> dict[str, np.ndarray]:
    """Columns for each input: queries, 0 where it was not attacked, and the mean absolute change."""
    found: dict[str, np.ndarray] = {}
    for name, one in asked.items():
        found[f"queries_of_{name}"] = one.queries.numpy()
        found[f"perturbation_by_{name}"] = one.perturbation.numpy()
    return found
