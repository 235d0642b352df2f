"""The robustness audit of a finished run: its attacks by name, how long they may take, and what was done already."""

import torch
from torch import nn

from weathered.attacks.base import Attack, cross_entropy, loss_and_gradient
from weathered.attacks.build import CLIP_DEFAULT, DEFAULT, build_attacks
from weathered.attacks.score_based import ScoreAttack
from weathered.audit.options import Audited, AuditOptions, audited_data
from weathered.audit.pieces import Pieces, duration, seconds_of
from weathered.audit.result import AuditResult
from weathered.audit.robustness import CURVE_STEPS, FACTORS, audit_robustness, block_of, check_inputs
from weathered.core.errors import DataError, SpecError
from weathered.core.predict import AtTestTime, device_of, eval_mode
from weathered.data.dataset import Dataset


def robustness(runs: Audited, options: AuditOptions) -> AuditResult:
    """Raises DataError for tables, SpecError or Incompatible for attacks that do not fit."""
    run, test = runs[0], audited_data(runs[0], options)
    if "table" in test.facts:
        raise DataError(f"{test.name}: the robustness audit needs images or clips, but the data are a table.")
    attacks = build_attacks(options.attacks or default_attacks(test), options.epsilon, options.norm)
    check_inputs(test, attacks)
    for attack in attacks.values():
        if isinstance(attack, ScoreAttack):
            _check_shape(attack, test)
    specs = {name: vars(attack) for name, attack in attacks.items()}
    model = AtTestTime(run.run, run.model)
    if options.announce is not None:
        options.announce(
            f"robustness: at most {duration(most_seconds(model, test, attacks))}, less where attacks succeed"
        )
    with Pieces.of(run, "robustness", attacks=specs, limit=options.limit) as pieces:
        return audit_robustness(model, test, attacks, run.recipe.settings.seed, pieces, options.progress)


def default_attacks(test: Dataset) -> tuple[str, ...]:
    """Those of a run on images, or on clips, where the square attack does not work."""
    return CLIP_DEFAULT if test.is_clip else DEFAULT


def _check_shape(attack: ScoreAttack, test: Dataset) -> None:
    try:
        attack.check_shape(torch.Size(test.inputs.shape))
    except ValueError as error:
        raise SpecError(f"{type(attack).__name__} does not fit {test.name}: {error}.") from None


def most_seconds(model: nn.Module, test: Dataset, attacks: dict[str, Attack]) -> float:
    """How long the audit takes if no attack succeeds, from one forward and one backward pass measured now."""
    rows = torch.arange(min(len(test), block_of(test)))
    x, y = test.floats(rows).to(device_of(model)), test.labels[rows].to(device_of(model))
    with eval_mode(model):
        with torch.no_grad():
            forward = seconds_of(lambda: model(x))
        both = seconds_of(lambda: loss_and_gradient(model, x, lambda logits: cross_entropy(logits, y)))
    passes = [attack.passes() for attack in attacks.values()]
    curve = (len(FACTORS) + 1) * (CURVE_STEPS + 1)
    whole = sum(count.forward for count in passes) * forward + (sum(c.backward for c in passes) + curve) * both
    besides = sum(attack.seconds_besides(x) for attack in attacks.values()) * len(test)
    return whole * len(test) / len(rows) + besides
