"""ReAct: reduces to Energy, and learns the percentile of all activations pooled."""

import pytest
import torch
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.scores.base import Evidence, LinearHead
from weathered.scores.energy import energy_score
from weathered.scores.react import ReAct, react_score


@pytest.fixture
def parts():
    rng = generator(0, "react")
    features = torch.randn(200, 16, generator=rng).relu()
    return features, torch.randn(5, 16, generator=rng), torch.randn(5, generator=rng)


def test_without_a_cut_it_is_the_energy(parts):
    features, weight, bias = parts
    logits = features.double() @ weight.double().T + bias
    assert_close(react_score(features, float("inf"), weight, bias), energy_score(logits))


def test_cuts_from_above_only(parts):
    features, weight, bias = parts
    cut = torch.where(features > 0.7, 0.7, features).double()
    assert_close(
        react_score(features, 0.7, weight, bias), energy_score(cut @ weight.double().T + bias), rtol=1e-6, atol=0
    )
    spike = features.clone()
    spike[0, 3] = 1e6
    spike[1, 3] = 0.7
    spiked = react_score(spike, 0.7, weight, bias)
    spike[0, 3] = 0.7
    assert_close(spiked, react_score(spike, 0.7, weight, bias))


def test_learns_the_percentile_over_all_units_and_samples():
    features = torch.arange(1000.0).reshape(50, 20)[torch.randperm(50, generator=generator(0, "p"))]
    labels = torch.zeros(50).long()
    assert ReAct().fit(features, labels).threshold_ == pytest.approx(0.9 * 999)
    assert ReAct(percentile=50).fit(features, labels).threshold_ == pytest.approx(0.5 * 999)
    assert ReAct(percentile=100).fit(features, labels).threshold_ == 999


def test_percentile_100_is_energy_on_the_training_rows(parts):
    features, weight, bias = parts
    evidence = Evidence(features=features, head=LinearHead(weight, bias))
    fitted = ReAct(percentile=100).fit(features, torch.zeros(200).long())
    assert_close(fitted.score(evidence), react_score(features, float("inf"), weight, bias))


def test_bad_calls_are_refused(parts):
    features, weight, bias = parts
    for percentile in (0, -1, 101, float("nan")):
        with pytest.raises(ValueError, match="percentile must be in"):
            ReAct(percentile)
    with pytest.raises(ValueError, match="at least one row"):
        ReAct().fit(features[:0], torch.zeros(0).long())
    with pytest.raises(ValueError, match="got NaN"):
        react_score(features, float("nan"), weight, bias)
    with pytest.raises(ValueError, match="do not fit"):
        react_score(features, 1.0, weight[:, 1:], bias)
    with pytest.raises(ValueError, match="do not fit"):
        react_score(features, 1.0, weight, bias[1:])
