"""The claim of ZODE on digits, over five splits: what the small check showed when it was written down."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

CLAIM = Path(__file__).parents[2] / "claims" / "zode.py"


@pytest.fixture(scope="module")
def claim():
    spec = importlib.util.spec_from_file_location("zode_claim", CLAIM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def means(claim):
    runs = [claim.details(seed) for seed in range(5)]
    return {m: {arm: np.mean([run[m][arm] for run in runs]) for arm in runs[0][m]} for m in runs[0]}


@pytest.mark.slow
def test_zode_keeps_acceptance_and_the_naive_rule_does_not(means):
    kept = means["ID kept at alpha"]
    assert kept["zode"] >= 0.93
    assert kept["all agree"] < 0.90


@pytest.mark.slow
def test_zode_beats_the_mean_single_model(claim, means):
    assert means["AUROC"]["zode"] - means["AUROC"][claim.BASELINE] >= 0.02
    accepted = means[claim.SECONDARY_METRIC]
    assert accepted[claim.BASELINE] - accepted["zode"] >= 0.05


def test_the_claim_has_the_agreed_shape(claim):
    values = claim.measure(0)
    assert tuple(values) == claim.ARMS
    assert claim.BASELINE in claim.ARMS
    assert values == claim.measure(0)
    assert values != claim.measure(1)
