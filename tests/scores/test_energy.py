"""Energy: bounds, limits and blocks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.scores import base
from weathered.scores.energy import Energy, energy_score


@given(st.integers(1, 30), st.floats(0.01, 200), st.integers(0, 1000))
def test_lies_between_minus_the_largest_logit_and_log_c_below(classes, scale, seed):
    logits = scale * torch.randn(17, classes, generator=generator(seed, "z"), dtype=torch.float64)
    gap = -logits.amax(1) - energy_score(logits)
    assert bool((gap >= -1e-9).all())
    assert bool((gap <= math.log(classes) + 1e-9).all())


def test_low_temperature_is_minus_the_largest_logit():
    logits = torch.randn(9, 5, generator=generator(0, "z"))
    assert_close(energy_score(logits, 1e-4), -logits.double().amax(1), atol=1e-3, rtol=0)


def test_a_shift_of_all_logits_shifts_the_score():
    logits = torch.randn(9, 5, generator=generator(0, "z"), dtype=torch.float64)
    for temperature in (0.5, 1.0, 20.0):
        assert_close(energy_score(logits + 7, temperature), energy_score(logits, temperature) - 7)


def test_equal_logits_have_a_closed_form():
    assert_close(energy_score(torch.full((1, 8), 2.0), 3.0), torch.tensor([-2 - 3 * math.log(8)], dtype=torch.float64))


def test_large_logits_do_not_overflow():
    assert energy_score(torch.tensor([[1e30, 0.0]])).item() == pytest.approx(-1e30)


def test_blocks_change_nothing(monkeypatch):
    logits = torch.randn(50, 7, generator=generator(0, "z"))
    whole = energy_score(logits)
    monkeypatch.setattr(base, "CHUNK_VALUES", 20)
    assert torch.equal(energy_score(logits), whole)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be > 0 and finite"):
        Energy(temperature)
    with pytest.raises(ValueError, match="temperature must be > 0 and finite"):
        energy_score(torch.zeros(1, 2), temperature)


def test_the_row_that_is_not_finite_is_named():
    logits = torch.zeros(4, 3)
    logits[2, 1] = float("inf")
    with pytest.raises(ValueError, match="row 2 holds NaN or infinity"):
        energy_score(logits)
