"""Out-of-distribution audit of a model: fit scores on training data, score test data and outliers, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from weathered.assemble import build, resolve
from weathered.audit.ood import audit_ood
from weathered.audit.ood_sets import synthetic_ood_sets
from weathered.audit.result import AuditResult
from weathered.core.errors import Incompatible, SpecError
from weathered.core.spec import near, parse
from weathered.data.dataset import Dataset
from weathered.registry import TABLE
from weathered.scores.base import Score
from weathered.scores.extract import extract, stream


def build_scores(names: Sequence[str]) -> dict[str, Score]:
    """Scores by name, with options as in `energy:temperature=2`.

    Raises SpecError for an unknown name, an empty list, or options that do not fit.
    """
    known = [entry.slug for entry in TABLE.values() if entry.slot == "score"]
    if not names:
        raise SpecError(f"expected at least one score; known are: {', '.join(known)}")
    found = {}
    for name in names:
        slug, _ = parse(name)
        if slug not in known:
            raise SpecError(f"unknown score '{slug}'.{near(slug, known)} Known are: {', '.join(known)}")
        found[name] = build(resolve([name])[0])
    return found


def score_values(
    model: nn.Module, data: Dataset, scores: Mapping[str, Score], batch_size: int = 256
) -> dict[str, np.ndarray]:
    """Each fitted score on all rows of `data`, name -> (N,) float64, in blocks of `batch_size`."""
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in scores}
    for block in stream(model, data, batch_size):
        for name, score in scores.items():
            columns[name].append(score.score(block).cpu())
    return {name: torch.cat(values).numpy() for name, values in columns.items()}


def audit_model_ood(
    model: nn.Module,
    train: Dataset,
    test: Dataset,
    seed: int,
    outliers: Mapping[str, Dataset] | None = None,
    score_names: Sequence[str] | None = None,
    scores: Mapping[str, Score] | None = None,
    batch_size: int = 256,
) -> AuditResult:
    """Fit scores on the training data's features and audit them on test data against outliers.

    outliers: name -> data with inputs shaped like the test data's; synthetic sets made from the test data if none
    are given, drawn with `seed`. score_names: by default all that the model allows, the others named in a note.
    scores: instances with options of their own, instead of names; they are fitted in place.
    Raises Incompatible if a named score lacks what it needs or outliers have another shape, SpecError for unknown
    names or for names and instances together.
    """
    if scores is not None and score_names is not None:
        raise SpecError("give score_names or scores, not both")
    notes = []
    if outliers is None:
        outliers = synthetic_ood_sets(test, seed)
        notes.append("The outliers are synthetic, made from the test data; outliers met in practice are harder.")
    for name, data in outliers.items():
        if data.inputs.shape != test.inputs.shape:
            raise Incompatible(
                f"outliers '{name}' have inputs of shape {data.inputs.shape}, the test data {test.inputs.shape}; "
                "bring them to the same shape."
            )
    optional = scores is None and score_names is None
    if scores is None:
        scores = build_scores(score_names or [entry.slug for entry in TABLE.values() if entry.slot == "score"])
    scores, refused = _fit(model, train, test, scores, optional)
    notes += [f"{name} was left out: {reason}" for name, reason in refused.items()]
    return audit_ood(
        score_values(model, test, scores, batch_size),
        {name: score_values(model, data, scores, batch_size) for name, data in outliers.items()},
        notes,
    )


def _fit(
    model: nn.Module, train: Dataset, test: Dataset, scores: Mapping[str, Score], optional: bool
) -> tuple[dict[str, Score], dict[str, str]]:
    """The scores, fitted and tried on one row; those that the model cannot serve are refused if `optional`."""
    evidence, first = extract(model, train), next(iter(stream(model, test.select(torch.arange(1)))))
    fitted, refused = {}, {}
    for name, score in scores.items():
        try:
            score.fit_evidence(evidence, train.labels).score(first)
        except Incompatible as error:
            if not optional:
                raise
            refused[name] = str(error)
        else:
            fitted[name] = score
    if not fitted:
        raise Incompatible(f"no score can be used with this model: {'; '.join(refused.values())}")
    return fitted, refused
