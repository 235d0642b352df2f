"""Rows drawn by weight: in proportion, independently, and the same for the same generator, however many there are."""

import pytest
import torch

from weathered.core import draws
from weathered.core.draws import weighted_rows


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["few", "many"])
def _path(request, monkeypatch):
    if request.param == "many":
        monkeypatch.setattr(draws, "MANY", 0)


@pytest.mark.usefixtures("_path")
def test_shares_follow_the_weights():
    weights = torch.tensor([0.0, 1, 2, 3, 0, 4, 0])
    counts = torch.bincount(weighted_rows(weights, 100_000, rng()), minlength=7).double()
    expected = weights / weights.sum() * 100_000
    assert not counts[weights == 0].any()
    deviation = (counts - expected) / (expected * (1 - weights / 10)).clamp_min(1).sqrt()
    assert float(deviation.abs().max()) < 4


@pytest.mark.usefixtures("_path")
def test_draws_are_in_no_order():
    rows = weighted_rows(torch.ones(1000), 50_000, rng()).double()
    assert abs(float(torch.corrcoef(torch.stack([rows[:-1], rows[1:]]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([rows, torch.arange(50_000.0)]))[0, 1])) < 0.02


@pytest.mark.usefixtures("_path")
def test_the_same_generator_gives_the_same_rows():
    weights = torch.rand(500, generator=rng(3))
    first, again, other = (weighted_rows(weights, 500, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.int64


@pytest.mark.usefixtures("_path")
def test_one_row_with_weight_is_always_drawn():
    weights = torch.zeros(40)
    weights[17] = 1e-30
    assert (weighted_rows(weights, 1000, rng()) == 17).all()


def test_more_rows_than_torch_takes():
    weights = torch.zeros(2**24 + 5)
    weights[-3:] = 1
    assert int(weighted_rows(weights, 1000, rng()).min()) >= 2**24 + 2


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0, 3.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_cannot_be_drawn_by(weights):
    with pytest.raises(ValueError, match="weights to draw by"):
        weighted_rows(torch.tensor(weights), 5, rng())
