"""Advice: it follows from the estimates, rests on the ledger, and its command is one that runs."""

import json
import shlex

import numpy as np
import pytest

from weathered.advice import RULES, Situation, advise, command_of, situation_of
from weathered.arms import parse_arms, plan
from weathered.audit.labels import audit_labels
from weathered.core.errors import DataError
from weathered.ledger import read_ledger
from weathered.recipe import DataOptions, Recipe
from weathered.registry import TABLE
from weathered.stats import Estimate

CLEAN = Estimate(0.01, 0.0, 0.02, 1000)
NOISY = Estimate(0.4, 0.37, 0.43, 1000)


def slugs(situation):
    return [item.use[0].partition(":")[0] for item in advise(situation)]


def judged(labels, given, names):
    """The audit of labels under a model that knows the truth but for a little doubt."""
    p = np.full((len(labels), len(names)), 0.02 / (len(names) - 1))
    p[np.arange(len(labels)), labels] = 0.98
    return audit_labels(p, given, names, resamples=10).to_json()


def test_noise_calls_for_methods_against_wrong_labels_with_the_estimated_rate():
    for situation in (Situation(1000, 10, NOISY, 1.0, 1.0), Situation(1000, 10, NOISY, 1.0, 8.0)):
        found = advise(situation)
        assert len(found) == 3
        assert len({TABLE[item.use[0].partition(":")[0]].slot for item in found}) == 3
        assert all("40% of the labels seem wrong" in item.reason for item in found)
    assert "forward-correction" not in slugs(Situation(1000, 10, NOISY, 1.0, 8.0))
    rated = [spec for item in found for spec in item.use if "rate" in spec]
    assert all(spec.endswith("=0.4") for spec in rated)


def test_a_long_tail_and_clean_labels_call_for_others():
    assert "ldam-drw" in slugs(Situation(1000, 10, CLEAN, 50.0, 1.0))
    assert not {"jocor", "co-teaching", "logitclip"} & set(slugs(Situation(1000, 10, CLEAN, 1.0, 1.0)))


def test_what_was_shown_comes_before_what_was_not():
    for situation in (Situation(1000, 10, NOISY, 1.0, 1.0), Situation(1000, 10, NOISY, 50.0, 1.0)):
        shown = [item.shown for item in advise(situation)]
        assert shown == sorted(shown, reverse=True)
    for item in advise(Situation(1000, 10, NOISY, 1.0, 1.0)):
        record = read_ledger(item.use[0].partition(":")[0])
        assert item.shown == (record is not None and record["verdict"] == "shown")
        assert record is None or item.ledger.startswith(record["verdict"])


@pytest.mark.parametrize("noise", [CLEAN, NOISY, Estimate(0.93, 0.9, 0.95, 1000)])
@pytest.mark.parametrize("imbalance", [1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_every_advice_can_be_run_as_its_command_says(noise, imbalance, classes):
    found = advise(Situation(1000, classes, noise, imbalance, 1.0))
    recipe = Recipe(data=DataOptions(train="digits", make=("symmetric:rate=0.2",), limit=300)).with_settings(epochs=7)
    words = shlex.split(command_of(recipe, found))
    assert words[:3] == ["weathered", "compare", "digits"]
    assert words[words.index("--limit") + 1] == "300"
    assert words[words.index("--epochs") + 1] == "7"
    planned = plan(recipe, parse_arms(words[words.index("--arms") + 1]), [0])
    # resolving spells all options out, so a wrong name or type would raise
    assert len({recipes[0].hash for recipes in planned.values()}) == 1 + len(found)


def test_every_rule_names_a_method_and_says_why():
    situation = Situation(1000, 10, NOISY, 50.0, 1.0)
    for rule in RULES:
        assert rule.slug in TABLE
        assert rule.reason(situation)


def test_a_situation_is_read_off_an_audit():
    rng = np.random.default_rng(0)
    names = [str(c) for c in range(5)]
    truth = rng.integers(0, 5, 4000)
    even = np.where(rng.random(4000) < 0.3, (truth + rng.integers(1, 5, 4000)) % 5, truth)
    paired = np.where(rng.random(4000) < 0.3, (truth + 1) % 5, truth)
    spread, focused = (situation_of(judged(truth, given, names)) for given in (even, paired))
    assert spread.noise.value == pytest.approx(0.3, abs=0.03)
    assert 1.0 <= spread.focus < 2
    assert focused.focus == pytest.approx(4, abs=0.2)
    assert (spread.rows, spread.num_classes) == (4000, 5)
    assert json.dumps(spread.noise._asdict())
    tail = np.concatenate([np.zeros(1000, int), np.ones(20, int)])
    assert situation_of(judged(tail, tail, ["a", "b"])).imbalance == 50
    with pytest.raises(DataError, match="make it again"):
        situation_of({"summary": {}})
