"""The moving average and the schedule of its momentum."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered.nn.ema import cosine_momentum, update_average


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    average = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    model = copy.deepcopy(average)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return average, model.requires_grad_()


@pytest.mark.parametrize(("momentum", "which"), [(1.0, 0), (0.0, 1)])
def test_limits_are_exact(momentum, which):
    average, model = pair()
    before = copy.deepcopy((average, model))
    update_average(average, model, momentum)
    for p, q, source in zip(average.parameters(), before[which].parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not p.requires_grad
        assert source.requires_grad
    for p, q in zip(model.parameters(), before[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_average_after_many_steps_has_its_closed_form():
    average, model = pair()
    start = [p.clone() for p in average.parameters()]
    for _ in range(20):
        update_average(average, model, 0.9)
    for now, first, end in zip(average.parameters(), start, model.parameters(), strict=True):
        assert_close(now, end + 0.9**20 * (first - end))


def test_buffers_stay():
    average, model = pair()
    model(torch.randn(8, 3))
    update_average(average, model, 0.5)
    assert torch.equal(average.get_buffer("1.running_mean"), torch.zeros(4))


def test_momentum_holds_and_then_rises_to_its_end():
    values = [cosine_momentum(t / 1000, 0.999, 0.99999) for t in range(1001)]
    assert values[:101] == [0.999] * 101
    assert all(later > earlier for earlier, later in pairwise(values[100:]))
    assert values[-1] == pytest.approx(0.99999, abs=1e-15)
    assert values[500] == pytest.approx((0.999 + 0.99999) / 2)
    assert cosine_momentum(0.7, 0.99, 0.99) == pytest.approx(0.99)


@pytest.mark.parametrize("arguments", [(1.1, 0.9, 0.99), (0.5, 0.99, 0.9), (0.5, -0.1, 0.9), (math.nan, 0.9, 0.99)])
def test_schedule_refuses_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="expected done"):
        cosine_momentum(*arguments)


def test_average_refuses_what_does_not_fit():
    average, model = pair()
    with pytest.raises(ValueError, match="momentum must be in"):
        update_average(average, model, 1.5)
    with pytest.raises(ValueError, match="same shapes"):
        update_average(average, nn.Linear(3, 4), 0.5)
