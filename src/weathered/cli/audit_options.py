"""What `weathered audit` was told, by the audit that reads it, as options of the audits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from weathered.attacks.base import Norm
from weathered.attacks.build import DEFAULT, build_attacks, parse_length
from weathered.audit.exchanges import Region
from weathered.audit.labels.of_run import LabelOptions, as_label_score
from weathered.audit.options import AuditOptions
from weathered.core.errors import SpecError
from weathered.core.spec import split_specs

Given = Mapping[str, Mapping[str, Any]]
"""Audit -> option as it is written -> its value; None or an empty list stands for not given."""


def audit_options(given: Given) -> AuditOptions:
    """Options of all audits but that of labels. Raises SpecError for values that do not fit."""
    ood, robustness, shortcut = (given.get(audit, {}) for audit in ("ood", "robustness", "shortcut"))
    told: dict[str, Any] = {
        "ood": tuple(ood.get("--ood") or ()),
        "scores": None if ood.get("--scores") is None else tuple(split_specs(ood["--scores"])),
        "sigma": given.get("certified", {}).get("--sigma"),
        "new": tuple(given.get("shift", {}).get("--new") or ()),
        "cues": tuple(Region.parse(cue) for cue in shortcut.get("--cue") or ()),
    }
    if shortcut.get("--grid") is not None:
        told["grid"] = shortcut["--grid"]
    return AuditOptions(**told, **attack_options(robustness))


def attack_options(budget: Mapping[str, str | None]) -> dict[str, Any]:
    """What `--attacks`, `--epsilon` and `--norm` say; None stands for not given.

    Raises SpecError for attacks or a budget that do not fit.
    """
    attacks, epsilon, norm = (budget.get(name) for name in ("--attacks", "--epsilon", "--norm"))
    plain = AuditOptions()
    length = plain.epsilon if epsilon is None else parse_length(epsilon)
    kind = plain.norm if norm is None else norm
    specs = () if attacks is None else tuple(split_specs(attacks))
    build_attacks(DEFAULT if attacks is None else specs, length, cast(Norm, kind))
    return {"attacks": specs, "epsilon": length, "norm": kind}


def check_read(wanted: Sequence[str], options: Mapping[str, Mapping[str, object]]) -> None:
    """Raise SpecError for an option that was given and that none of the wanted audits reads."""
    for audit, given in options.items():
        idle = [name for name, value in given.items() if value not in (None, [])]
        if idle and audit not in wanted:
            raise SpecError(
                f"{' and '.join(idle)} would do nothing without the audit {audit}; add --audits {audit}, or leave it "
                "out."
            )


def label_options(
    audits: Sequence[str] | None,
    folds: int | None,
    pred_probs: Path | None,
    label_score: str | None,
    annotators: str | None,
    workers: int | None,
) -> LabelOptions:
    """What the command line says of the label audit. None stands for not given.

    Raises SpecError for options of the label audit where it is not among the audits, and for folds beside given
    probabilities.
    """
    given = {
        "--folds": folds,
        "--pred-probs": pred_probs,
        "--label-score": label_score,
        "--annotators": annotators,
        "--workers": workers,
    }
    named = [name for name, value in given.items() if value is not None]
    if named and "labels" not in (audits or ()):
        raise SpecError(f"{', '.join(named)} would do nothing without the label audit; add --audits labels.")
    if pred_probs is not None and (idle := [name for name in named if name in ("--folds", "--workers")]):
        raise SpecError(
            f"--pred-probs takes the place of folds, so {' and '.join(idle)} would do nothing; leave it out."
        )
    people = tuple(column.strip() for column in annotators.split(",")) if annotators else ()
    plain = LabelOptions()
    return LabelOptions(
        plain.folds if folds is None else folds,
        pred_probs,
        plain.score if label_score is None else as_label_score(label_score),
        annotators=people,
        workers=workers,
    )
