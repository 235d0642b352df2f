"""Robustness audit: how often an image or clip is still classified right after an attack within a budget.

Each attack is run by itself on the images that are classified right; an image is robust if it withstands all of them,
which is never more than under any one. The curve over epsilon comes from one attack at growing budgets, where an image
that was turned counts as turned at each larger budget too, as the input that turned it is allowed there.
Limit cases: with epsilon 0 every figure is the accuracy; a network that ignores its input loses nothing.
Source of the protocol: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", ICML 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from weathered.attacks.apgd import APGDCrossEntropy
from weathered.attacks.base import Attack, Norm
from weathered.attacks.fgsm import FGSM
from weathered.attacks.score_based import Attacked, ScoreAttack
from weathered.attacks.square import Square
from weathered.audit.black_box import Asked, asked_columns, asked_notes, asked_summary, asked_tables
from weathered.audit.pieces import Pieces
from weathered.audit.result import AuditResult, Chart, Series, Table, quoted
from weathered.core.errors import DataError, Incompatible
from weathered.core.predict import device_of, eval_mode
from weathered.core.rng import generator
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.stats import Estimate, proportion_interval

BLOCK = 256
"""Images attacked at a time; their draws are keyed by the block, so it is fixed."""

CLIPS = 32
"""The same of clips, which are larger."""

CURVE_STEPS = 20
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Budgets of the curve as multiples of epsilon; a last one is so large that a gradient attack turns everything."""


def curve_budgets(epsilon: float, norm: Norm, values: int) -> list[float]:
    """The budgets of the curve, rising; values: numbers in an input."""
    large = 0.5 if norm == "linf" else 0.5 * math.sqrt(values)
    return [*(epsilon * factor for factor in FACTORS if 0 < epsilon * factor < large), large]


def audit_robustness(
    model: nn.Module,
    dataset: Dataset,
    attacks: Mapping[str, Attack],
    seed: int,
    pieces: Pieces | None = None,
    watch: Progress | None = None,
) -> AuditResult:
    """Accuracy on clean images, under each attack, under all, and over epsilon.

    model: images in [0, 1] to logits. dataset: test images, or clips, with the labels that count. attacks: at least one
    by name, all of one budget. seed: of their draws. pieces: where finished parts are kept. watch: told how far it is.
    per_sample: robust, one column for each attack, and smallest_epsilon, the least budget of the curve that turned the
    image, infinity where none did. Attacks by scores alone have a table and columns of their queries besides.
    Raises DataError for tables, Incompatible for attacks that need other inputs, ValueError without attacks or for
    several budgets.
    """
    if "table" in dataset.facts or not len(dataset):
        raise DataError(f"{dataset.name}: the robustness audit needs at least one image or clip.")
    check_inputs(dataset, attacks)
    if len({(attack.epsilon, attack.norm) for attack in attacks.values()}) != 1:
        raise ValueError("expected at least one attack, and one epsilon and norm for all")
    first = next(iter(attacks.values()))
    budgets = curve_budgets(first.epsilon, first.norm, math.prod(dataset.inputs.shape))
    work = _Work(model, dataset, seed, pieces or Pieces(), watch, attacks)
    clean = work.clean()
    held = {name: work.under(name, attack, clean) for name, attack in attacks.items()}
    turned = work.curve(budgets, first.norm, clean)
    return _result(clean, held, attacks, budgets, turned, work.asked, dataset.kind)


def check_inputs(dataset: Dataset, attacks: Mapping[str, Attack]) -> None:
    """Raise Incompatible for an attack that needs other inputs than the data set has."""
    for name, attack in attacks.items():
        for fact, why in attack.traits.needs.items():
            if fact not in dataset.facts:
                raise Incompatible(
                    f"the attack {name} needs '{fact}' ({why}), but the data are {dataset.kind}; name others with "
                    "--attacks, such as pgd,nes."
                )


def block_of(dataset: Dataset) -> int:
    """How many inputs are attacked at a time."""
    return BLOCK if dataset.is_image else CLIPS


class _Work:
    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        seed: int,
        pieces: Pieces,
        watch: Progress | None,
        attacks: Mapping[str, Attack],
    ):
        self.model, self.dataset, self.seed, self.pieces, self.watch = model, dataset, seed, pieces, watch
        self.blocks = torch.arange(len(dataset)).split(block_of(dataset))
        self.asked: dict[str, Asked] = {}
        self.done = 0
        self.parts = len(self.blocks) + sum(len(self._blocks_of(attack)) for attack in attacks.values())

    def _blocks_of(self, attack: Attack) -> tuple[Tensor, ...]:
        return torch.arange(len(self.dataset)).split(min(attack.piece, block_of(self.dataset)))

    def clean(self) -> Tensor:
        return torch.cat([self._right(self._images(rows), rows) for rows in self.blocks])

    def _images(self, rows: Tensor) -> Tensor:
        return self.dataset.floats(rows).to(device_of(self.model))

    def _right(self, x: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad(), eval_mode(self.model):
            return self.model(x).argmax(1).cpu() == self.dataset.labels[rows]

    def _piece(self, what: str, number: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        found = self.pieces.get(f"{what}.{number}", make)
        self.done += 1
        if self.watch is not None:
            self.watch("robustness", self.done, self.parts)
        return found

    def under(self, name: str, attack: Attack, clean: Tensor) -> Tensor:
        """Which images are right under an attack, (N,) bool."""

        def block(number: int, rows: Tensor) -> dict[str, Tensor]:
            chosen = rows[clean[rows]]
            right = torch.zeros(len(rows), dtype=torch.bool)
            found: Attacked | None = None
            if len(chosen):
                x, y = self._images(chosen), self.dataset.labels[chosen].to(device_of(self.model))
                rng = generator(self.seed, "robustness", name, number, device=x.device)
                if isinstance(attack, ScoreAttack):
                    found = attack.run(self.model, x, y, rng)
                moved = attack(self.model, x, y, rng) if found is None else found.x
                right[clean[rows]] = self._right(moved, chosen)
            asked = Asked.of(found, clean[rows]).tensors() if isinstance(attack, ScoreAttack) else {}
            return {"right": right, **asked}

        kept = "".join(letter if letter.isalnum() else "-" for letter in name)
        parts = [
            self._piece(kept, n, lambda n=n, rows=rows: block(n, rows))
            for n, rows in enumerate(self._blocks_of(attack))
        ]
        if isinstance(attack, ScoreAttack):
            self.asked[name] = Asked.joined(parts)
        return torch.cat([part["right"] for part in parts])

    def curve(self, budgets: list[float], norm: Norm, clean: Tensor) -> Tensor:
        """The position of the least budget that turned each image, -1 where it was wrong, their number where none."""

        def block(number: int, rows: Tensor) -> dict[str, Tensor]:
            found = torch.where(clean[rows], len(budgets), -1)
            for place, budget in enumerate(budgets):
                chosen = rows[found == len(budgets)]
                if not len(chosen):
                    break
                x, y = self._images(chosen), self.dataset.labels[chosen].to(device_of(self.model))
                rng = generator(self.seed, "robustness curve", place, number, device=x.device)
                attack = APGDCrossEntropy(budget, norm, steps=CURVE_STEPS)
                held = self._right(attack(self.model, x, y, rng), chosen)
                found[found == len(budgets)] = torch.where(held, len(budgets), place)
            return {"place": found}

        parts = [self._piece("curve", n, lambda n=n, rows=rows: block(n, rows)) for n, rows in enumerate(self.blocks)]
        return torch.cat([part["place"] for part in parts])


def _result(
    clean: Tensor,
    held: dict[str, Tensor],
    attacks: Mapping[str, Attack],
    budgets: list[float],
    turned: Tensor,
    asked: Mapping[str, Asked],
    what: str,
) -> AuditResult:
    n, first = len(clean), next(iter(attacks.values()))
    robust = torch.stack(list(held.values())).all(0)
    shares = {name: proportion_interval(int(right.sum()), n) for name, right in held.items()}
    summary = {
        "robust accuracy": proportion_interval(int(robust.sum()), n),
        "clean accuracy": proportion_interval(int(clean.sum()), n),
        **{f"accuracy under {name}": share for name, share in shares.items()},
    }
    figures, higher = asked_summary(asked)
    curve = [summary["clean accuracy"], *(proportion_interval(int((turned > i).sum()), n) for i in range(len(budgets)))]
    smallest = torch.tensor([*budgets, math.inf, 0.0], dtype=torch.float64)[turned]
    rows = [("none", *summary["clean accuracy"]), *((name, *share) for name, share in shares.items())]
    return AuditResult(
        "robustness",
        {**summary, **figures},
        {**dict.fromkeys(summary, True), **higher},
        tables=(
            Table(
                f"Accuracy under attack, {first.norm}, epsilon {first.epsilon:.4g}",
                ("attack", "accuracy", "low", "high", "n"),
                (*rows, ("all of them", *summary["robust accuracy"])),
            ),
            *asked_tables(asked, attacks, what),
        ),
        figures=(_chart([0.0, *budgets], curve, first.norm),),
        per_sample={
            "robust": robust.numpy(),
            **{f"right_under_{name}": right.numpy() for name, right in held.items()},
            "smallest_epsilon": smallest.numpy(),
            **asked_columns(asked),
        },
        notes=(
            *_notes(held, attacks, summary, curve[-1], budgets[-1], what),
            *asked_notes(asked, attacks, what),
        ),
    )


def _chart(budgets: list[float], curve: list[Estimate], norm: Norm) -> Chart:
    line = Series("apgd-ce", budgets, [e.value for e in curve], [e.low for e in curve], [e.high for e in curve])
    return Chart(
        "Accuracy over epsilon", "line", f"epsilon ({norm}, inputs in [0, 1])", "accuracy", (line,),
        f"Accuracy under {CURVE_STEPS} steps of apgd-ce falls from {curve[0].value:.3f} without attack to "
        f"{curve[-1].value:.3f} at {budgets[-1]:.3g}; bands are 95 % intervals.",
    )  # fmt: skip


def _notes(
    held: dict[str, Tensor],
    attacks: Mapping[str, Attack],
    summary: dict[str, Estimate],
    last: Estimate,
    budget: float,
    what: str,
) -> tuple[str, ...]:
    first = next(iter(attacks.values()))
    notes = [
        f"Robust: right under all of {quoted(list(held), len(held))}, within {first.norm} distance "
        f"{first.epsilon:.4g} of the {what.removesuffix('s')}.",
        "It is an upper bound: an attack that is not among them may turn more, and nothing is said of larger budgets "
        "or other changes. Only a certificate proves that no attack succeeds.",
    ]
    weak = [name for name, attack in attacks.items() if isinstance(attack, FGSM)]
    others = [right for name, right in held.items() if name not in weak]
    if weak and others:
        gap = summary[f"accuracy under {weak[0]}"].value - summary["robust accuracy"].value
        if gap > 0.05:
            notes.append(
                f"One step ({weak[0]}) finds {100 * gap:.1f} points less than all; do not judge robustness by it."
            )
    black = [name for name, attack in attacks.items() if isinstance(attack, (Square, ScoreAttack))]
    with_gradient = [right for name, right in held.items() if name not in black]
    if black and with_gradient:
        hidden = torch.stack(with_gradient).all(0) & ~torch.stack([held[name] for name in black]).all(0)
        if int(hidden.sum()) > max(1, 0.02 * len(hidden)):
            notes.append(
                f"Scores alone, for which {quoted(black)} needs no gradient, turned {int(hidden.sum())} {what} that "
                "withstood all others: gradients of this model mislead, so trust the lowest figure only."
            )
    if last.value > 0.05 and last.value > 0.25 * summary["clean accuracy"].value:
        notes.append(
            f"At epsilon {budget:.3g}, where all {what} can be made grey, {100 * last.value:.1f} % are still right: "
            "the attack of the curve does not work on this model, whose gradients are probably hidden."
        )
    return tuple(notes)
