"""The score of a class of outliers: log-odds that rank as the probability does, and tell more where it saturates."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.audit.ood_metrics import auroc
from weathered.core.errors import Incompatible
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.procedures.cnc_ood import OutlierNetwork
from weathered.scores.base import Evidence
from weathered.scores.extract import extract, has_outlier_class, stream
from weathered.scores.outlier_class import OutlierClass, outlier_log_odds


def logits(rows, classes=4, seed=0, scale=3.0):
    """Logits of the classes and of the outliers."""
    z = scale * torch.randn(rows, classes + 1, generator=generator(seed, "logits"), dtype=torch.float64)
    return z[:, :-1], z[:, -1]


@given(st.integers(1, 6), st.integers(0, 1000), st.floats(-50, 50))
def test_the_sigmoid_is_the_probability_of_outliers_and_constants_change_nothing(classes, seed, constant):
    z, outlier = logits(20, classes, seed)
    score = outlier_log_odds(z, outlier)
    p = torch.cat([z, outlier[:, None]], 1).softmax(1)[:, -1]
    assert score.dtype == torch.float64
    assert_close(score.sigmoid(), p, atol=1e-12, rtol=0)
    assert_close(outlier_log_odds(z + constant, outlier + constant), score, atol=1e-9, rtol=0)
    assert_close(outlier_log_odds(z, outlier + 1), score + 1)


@given(st.integers(0, 1000))
def test_the_area_is_that_of_the_probability_where_it_has_no_ties(seed):
    (a, b), (c, d) = logits(60, seed=seed), logits(50, seed=seed + 5000)
    probability = [torch.cat([z, o[:, None]], 1).softmax(1)[:, -1] for z, o in ((a, b), (c, d))]
    assert len(torch.cat(probability).unique()) == 110
    from_logits = auroc(outlier_log_odds(a, b), outlier_log_odds(c, d)).value
    assert from_logits == pytest.approx(auroc(*probability).value, abs=1e-12)


@pytest.mark.parametrize("level", [-800.0, 60.0])
def test_saturated_probabilities_tie_and_log_odds_do_not(level):
    """In float64 all these probabilities of outliers are 0, or 1."""
    outlier = level + torch.arange(10, dtype=torch.float64)
    z = torch.zeros(10, 3, dtype=torch.float64)
    p = torch.cat([z, outlier[:, None]], 1).softmax(1)[:, -1]
    assert len(p.unique()) == 1
    score = outlier_log_odds(z, outlier)
    assert bool((score.diff() > 0).all())
    assert auroc(score[:5], score[5:]).value == 1.0
    assert auroc(p[:5], p[5:]).value == 0.5


def test_equal_logits_are_minus_the_log_of_the_number_of_classes():
    for classes in (1, 2, 10):
        zeros = torch.zeros(3, classes)
        assert_close(outlier_log_odds(zeros, zeros[:, 0]), torch.full((3,), -math.log(classes), dtype=torch.float64))


def test_logits_that_do_not_fit_are_refused():
    z, outlier = logits(5)
    with pytest.raises(ValueError, match="one outlier logit for each row"):
        outlier_log_odds(z, outlier[:4])
    with pytest.raises(ValueError, match="one outlier logit for each row"):
        outlier_log_odds(z, outlier[:, None])
    broken, strange = z.clone(), outlier.clone()
    broken[3, 1], strange[2] = math.nan, math.inf
    with pytest.raises(ValueError, match="^logits must be finite, row 3"):
        outlier_log_odds(broken, outlier)
    with pytest.raises(ValueError, match="^outlier logits must be finite, row 2"):
        outlier_log_odds(z, strange)


@pytest.fixture(scope="module")
def network() -> tuple[OutlierNetwork, Dataset]:
    rows = torch.randn(70, 6, generator=generator(0, "rows"))
    data = Dataset.of(rows, torch.arange(70) % 3)
    return OutlierNetwork(build_model("mlp:width=16,depth=1", data), torch.nn.Linear(16, 1)), data


def test_the_evidence_of_a_network_with_outliers_is_read_block_by_block(network):
    model, data = network
    assert has_outlier_class(model)
    whole = extract(model, data, batch_size=32)
    assert whole.outlier_logits is not None
    assert whole.outlier_logits.shape == (70,)
    with torch.no_grad():
        everything = model.all_logits(data.floats(torch.arange(70)))
    assert_close(torch.cat([whole.logits, whole.outlier_logits[:, None]], 1), everything)
    score = OutlierClass().fit(whole.features, data.labels)
    blocks = torch.cat([score.score(block) for block in stream(model, data, 16)])
    assert_close(blocks, score.score(whole))
    with torch.no_grad():
        assert_close(model.outlier_score(data.floats(torch.arange(70))), score.score(whole), atol=1e-5, rtol=1e-5)
    # the head is that of the classes alone
    assert whole.head is not None
    assert whole.head.weight.shape == (3, 16)


def test_networks_without_outliers_are_refused_by_name(network):
    model, data = network
    evidence = extract(model.network, data)
    assert evidence.outlier_logits is None
    with pytest.raises(Incompatible, match=r"^OutlierClass needs 'outlier_logits'.*cnc-ood"):
        OutlierClass().score(evidence)
    with pytest.raises(Incompatible, match=r"^OutlierClass needs 'logits'"):
        OutlierClass().score(Evidence(outlier_logits=torch.zeros(3)))
    with pytest.raises(ValueError, match="same inputs"):
        Evidence(logits=torch.zeros(3, 2), outlier_logits=torch.zeros(4))
