"""The audit of sets: against the rules themselves, and through a finished run."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from weathered.audit.options import AuditOptions
from weathered.audit.run_audits import AUDITS
from weathered.audit.sets import audit_sets
from weathered.core.rng import generator
from weathered.core.settings import Settings
from weathered.loaded_run import load_run
from weathered.recipe import DataOptions, Recipe
from weathered.sets.average_k import AverageK
from weathered.sets.report import measure_sets
from weathered.sets.top_k import TopK
from weathered.training import train


def drawn(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = generator(seed, "sets")
    logits = 2 * torch.randn(size, 6, generator=rng)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]


def test_errors_are_those_of_the_rules():
    (held, held_labels), (logits, labels) = drawn(400, 0), drawn(500, 1)
    result = audit_sets(held, held_labels, logits, labels, sizes=(1, 2, 9))
    probabilities = logits.double().softmax(1)
    for k in (1, 2):
        mask = AverageK(k).fit(held.double().softmax(1)).predict(probabilities)
        error = measure_sets(mask, labels).error.value
        top = measure_sets(TopK(k).predict(probabilities), labels).error.value
        assert result.summary[f"error of average-{k}"].value == pytest.approx(error)
        assert result.summary[f"gain over top-{k}"].value == pytest.approx(top - error)
    assert not any("9" in name for name in result.summary)
    assert abs(result.summary["error of conformal sets"].value - 0.1) < 0.05
    assert_close(result.tables[0].rows[1][-1], float(np.mean(mask.sum(1))))
    json.dumps(result.to_json(), allow_nan=False)


def test_what_does_not_fit_is_refused():
    (held, held_labels), (logits, labels) = drawn(10, 0), drawn(10, 1)
    with pytest.raises(ValueError, match="a size below the 6 classes"):
        audit_sets(held, held_labels, logits, labels, sizes=(6, 7))
    with pytest.raises(ValueError, match="labels"):
        audit_sets(held, held_labels, logits, labels + 6)


def test_a_finished_run_is_audited_on_one_half_of_its_test_set(tmp_path):
    recipe = Recipe(DataOptions(train="digits", limit=300), model="mlp:width=32", settings=Settings(epochs=3))
    run = load_run(train(recipe, tmp_path).path)
    result = AUDITS["sets"]([run], AuditOptions(limit=201))
    assert result.summary["error of average-1"].n == 101
    assert "100 test samples that are not measured; 101 are" in result.notes[0]
    assert result.to_json() == AUDITS["sets"]([run], AuditOptions(limit=201)).to_json()
