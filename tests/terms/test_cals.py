"""CALS alone: penalties and their derivatives, limits, and what the multipliers learn of held-out logits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.terms.cals import CALS, constraint, penalty, penalty_derivative

KINDS = ("phr", "p2", "p3")
NUMBERS = {
    "h": st.floats(-5, 5),
    "multiplier": st.floats(0, 10),
    "rho": st.floats(0.1, 10),
}


def exact(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logits_of(*shape: int, scale: float = 5.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def far(margin: float, beyond: float, rows: int = 7) -> torch.Tensor:
    """Logits of four classes: class 0 leads, and the others have the constraint `beyond`."""
    z = torch.full((rows, 4), -margin * (1 + beyond), dtype=torch.float64)
    z[:, 0] = 0
    return z


def learn(term: CALS, *batches: torch.Tensor, epochs: int = 1, labels: torch.Tensor | None = None) -> CALS:
    term.reset()
    for logits in batches:
        term.update(logits, labels)
    term.step(epochs)
    return term


@pytest.mark.parametrize("kind", KINDS)
@given(**NUMBERS)
def test_the_derivative_is_that_of_the_penalty(kind, h, multiplier, rho):
    x = exact(h).requires_grad_()
    (slope,) = torch.autograd.grad(penalty(x, exact(multiplier), exact(rho), kind).sum(), x)
    assert_close(penalty_derivative(exact(h), exact(multiplier), exact(rho), kind), slope, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(multiplier=NUMBERS["multiplier"], rho=NUMBERS["rho"])
def test_at_0_the_penalty_is_0_and_its_slope_the_multiplier(kind, multiplier, rho):
    zero, m, r = exact(0), exact(multiplier), exact(rho)
    assert penalty(zero, m, r, kind).item() == 0
    assert penalty_derivative(zero, m, r, kind).item() == multiplier
    for side in (-1e-7, 1e-7):
        assert_close(penalty(exact(side), m, r, kind) / side, m, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(multiplier=NUMBERS["multiplier"], rho=NUMBERS["rho"])
def test_the_penalty_never_falls_and_phr_is_convex(kind, multiplier, rho):
    h = torch.linspace(-5, 5, 201, dtype=torch.float64)
    values = penalty(h, exact(multiplier), exact(rho), kind)
    assert (values.diff() >= -1e-12).all()
    if kind == "phr":
        assert (values.diff().diff() >= -1e-9).all()


def test_values_by_hand():
    h, m, r = exact(2, -0.5), exact(3, 3), exact(4, 4)
    # phr: (11^2 - 9) / 8 and (1 - 9) / 8; p2: 6 + 48 + 16 * 8 / 6 and -1.5 / 3; p3: 6 + 48
    assert_close(penalty(h, m, r, "phr"), exact(14, -1))
    assert_close(penalty(h, m, r, "p2"), exact(54 + 64 / 3, -0.5))
    assert_close(penalty(h, m, r, "p3"), exact(54, -0.5))
    assert_close(penalty(exact(-5), exact(3), exact(4), "phr"), exact(-9 / 8))
    assert_close(penalty_derivative(h, m, r, "p2"), exact(3 + 48 + 32, 3 / 9))


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_is_nan_where_the_other_branch_divides_by_0(kind):
    h = exact(0.25, -0.25).requires_grad_()
    penalty(h, exact(1, 1), exact(4, 4), kind).sum().backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()


def test_the_constraint_is_the_distance_in_margins_and_the_largest_logit_has_minus_one():
    z = torch.tensor([[3.0, 1.0, -5.0], [0.0, 0.0, 4.0]])
    assert_close(constraint(z, 2.0), torch.tensor([[-1.0, 0.0, 3.0], [1.0, 1.0, -1.0]]))
    assert_close(constraint(z, 2.0, normalize=False), 2 * constraint(z, 2.0))
    assert constraint(z.bfloat16(), 2.0).dtype == torch.float32
    found = constraint(logits_of(50, 6), 3.0)
    assert float(found.min()) == -1
    assert (found.gather(1, logits_of(50, 6).argmax(1, keepdim=True)) == -1).all()


def test_gradient_flows_through_the_largest_logit_and_the_others():
    z = exact(5, 1, 0)[None].requires_grad_()
    constraint(z, 2.0)[0, 1].backward()
    assert z.grad is not None
    assert_close(z.grad, exact(0.5, -0.5, 0)[None])


def test_without_multipliers_phr_is_half_of_rho_times_the_squared_excess():
    term = CALS(6, margin=4.0, lambda_min=0.0, rho_min=3.0)
    z = logits_of(40, 6)
    excess = constraint(z, 4.0).relu()
    assert float(excess.max()) > 0
    assert_close(term.penalties(z), 1.5 * excess.square().mean(1))


def test_distances_within_the_margin_leave_cross_entropy_exactly():
    term, labels = CALS(6, margin=4.0, lambda_min=0.0), torch.arange(40) % 6
    near = 4 * torch.rand(40, 6, generator=generator(2), dtype=torch.float64)
    plain = F.cross_entropy(near, labels)
    assert torch.equal(plain + term.penalties(near).mean(), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_an_endless_margin_adds_a_constant(kind):
    term, z = CALS(6, margin=1e9, penalty=kind), logits_of(40, 6).requires_grad_()
    (slope,) = torch.autograd.grad(term.penalties(z).mean(), z)
    assert_close(slope, torch.zeros_like(slope), atol=1e-6 / 240, rtol=0)
    assert_close(term.constraints(z).detach(), torch.full((40, 6), -1.0).double(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_on_all_logits_changes_nothing(kind):
    z, shift = logits_of(30, 5), 100 * torch.randn(30, 1, generator=generator(3), dtype=torch.float64)
    one, other = (learn(CALS(5, margin=3.0, penalty=kind), logits) for logits in (z, z + shift))
    assert_close(one.multipliers, other.multipliers)
    assert_close(one.penalties(z), one.penalties(z + shift))


def test_the_penalty_is_the_mean_over_classes_with_a_multiplier_for_each():
    term = CALS(3, margin=1.0)
    term.multipliers = exact(0, 1, 10)
    term.rho = exact(1, 2, 5)
    h = constraint(logits_of(4, 3), 1.0)
    by_hand = torch.stack([penalty(h[:, k], term.multipliers[k], term.rho[k]) for k in range(3)]).mean(0)
    assert_close(term.penalties(logits_of(4, 3)), by_hand)


@pytest.mark.parametrize("kind", KINDS)
@given(scale=st.floats(0.1, 100), low=st.floats(0, 1), more=st.floats(0, 2))
def test_multipliers_stay_within_their_bounds(kind, scale, low, more):
    term = CALS(5, margin=1.0, penalty=kind, lambda_min=low, lambda_max=low + more)
    for epochs in range(1, 4):
        learn(term, logits_of(20, 5, scale=scale), epochs=epochs)
        assert ((term.multipliers >= low) & (term.multipliers <= low + more)).all()


def test_a_constraint_that_holds_takes_the_multiplier_to_its_lowest_value_at_once():
    term = CALS(4, margin=10.0)
    term.multipliers = exact(0.1, 0.2, 0.3, 0.4)
    learn(term, far(10.0, -0.45))
    assert_close(term.multipliers, torch.full((4,), 1e-6, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_constraint_that_is_broken_by_c_adds_rho_c_in_each_update():
    term = CALS(4, margin=10.0, rho_min=2.0, rho_step=-1)
    for epochs in (1, 2, 3):
        learn(term, far(10.0, 0.5), epochs=epochs)
        assert_close(term.multipliers[1:], torch.full((3,), 1e-6 + epochs).double())
        assert float(term.multipliers[0]) == 1e-6


def test_the_mean_is_that_of_clipped_slopes_not_the_slope_at_the_mean():
    term = CALS(4, margin=1.0, lambda_max=2.0)
    learn(term, far(1.0, 9.0, rows=1), far(1.0, -0.9, rows=1))
    assert_close(term.multipliers[1:], torch.full((3,), (2 + 1e-6) / 2).double())


def test_rho_grows_only_where_the_constraint_is_broken_and_has_not_come_down():
    term = CALS(4, margin=1.0, rho_step=2, rho_max=1.3)
    seen = [term.rho]
    # broken by 1, then by 0.5: it has come down enough; then by 0.49 it has not; then it holds
    for epochs, beyond in enumerate((1.0, 0.5, 0.5, 0.49, 0.49, 0.49, -0.5, -0.5), start=1):
        seen.append(learn(term, far(1.0, beyond), epochs=epochs).rho)
    others = [float(rho[1]) for rho in seen]
    assert others == pytest.approx([1, 1, 1, 1, 1.2, 1.2, 1.3, 1.3, 1.3])
    assert all(float(rho[0]) == 1 for rho in seen)
    drawn = CALS(5, margin=6.0, rho_step=1)
    for epochs in range(1, 9):
        before, z = drawn.rho, logits_of(30, 5, seed=epochs)
        learn(drawn, z, epochs=epochs)
        assert (drawn.rho >= before).all()
        assert (constraint(z, 6.0).mean(0)[drawn.rho > before] > 0).all()


@pytest.mark.parametrize(("before", "grown"), [(0.2, 1.2), (0.9, 1.0)])
def test_what_rho_compares_with_is_the_mean_of_the_epoch_before(before, grown):
    term = CALS(4, margin=1.0, rho_step=2)
    for epochs, beyond in enumerate((1.0, 0.5, before, 0.48), start=1):
        learn(term, far(1.0, beyond), epochs=epochs)
    assert term.rho.tolist() == pytest.approx([1, grown, grown, grown])


def test_rho_does_not_grow_before_there_is_a_mean_to_compare_with():
    term = learn(CALS(4, margin=1.0, rho_step=1), far(1.0, 5.0))
    assert term.rho.tolist() == [1, 1, 1, 1]
    assert learn(term, far(1.0, 5.0), epochs=2).rho.tolist() == pytest.approx([1, 1.2, 1.2, 1.2])


@pytest.mark.parametrize("kind", KINDS)
def test_ten_batches_are_one(kind):
    z = logits_of(100, 5)
    one, ten = (
        learn(learn(CALS(5, margin=3.0, penalty=kind, rho_step=1), *batches), *batches, epochs=2)
        for batches in ([z], z.split(10))
    )
    assert_close(one.multipliers, ten.multipliers, atol=1e-6, rtol=0)
    assert torch.equal(one.rho, ten.rho)


def test_pixels_are_samples_and_ignored_ones_are_left_out():
    maps = logits_of(3, 5, 4, 6)
    flat = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    one, other = (learn(CALS(5, margin=3.0), z) for z in (maps, flat))
    assert_close(one.multipliers, other.multipliers)
    assert_close(one.penalties(maps), other.penalties(flat))
    labels = torch.randint(5, (3, 4, 6), generator=generator(4))
    labels[:, :2] = 255
    kept = flat[(labels != 255).flatten()]
    masked, alone = learn(CALS(5, margin=3.0), maps, labels=labels), learn(CALS(5, margin=3.0), kept)
    assert_close(masked.multipliers, alone.multipliers)
    assert_close(masked.penalties(maps, labels), alone.penalties(kept))
    assert not torch.allclose(masked.multipliers, one.multipliers)
    other_labels = torch.where(labels == 255, 255, 4 - labels)
    assert torch.equal(learn(CALS(5, margin=3.0), maps, labels=other_labels).multipliers, masked.multipliers)


def test_in_half_precision_it_is_computed_in_float32():
    z = logits_of(20, 4).bfloat16()
    term = learn(CALS(4, margin=3.0), z)
    assert torch.equal(term.penalties(z), term.penalties(z.float()))
    assert term.penalties(z).dtype == torch.float32


def test_multipliers_are_out_of_the_graph():
    z = logits_of(20, 4).requires_grad_()
    term = learn(CALS(4, margin=3.0), z)
    assert not term.multipliers.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, "margin must be > 0 and finite, got 0.0"),
        ({"margin": math.nan}, "margin must be > 0"),
        ({"rho_min": 0.0}, "expected 0 < rho_min <= rho_max, finite, got 0.0"),
        ({"rho_min": 11.0}, "got 11.0 and 10.0"),
        ({"lambda_min": -1.0}, "expected 0 <= lambda_min <= lambda_max"),
        ({"lambda_step": 0}, "lambda_step must be at least 1"),
        ({"rho_step": -2}, "rho_step at least -1"),
        ({"gamma": 0.9}, "gamma must be >= 1"),
        ({"tau": -0.1}, "tau >= 0"),
        ({"penalty": "p4"}, "penalty must be one of phr, p2, p3, got 'p4'"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CALS(**{"num_classes": 4, **options})


def test_bad_use_is_refused_and_changes_nothing():
    term = CALS(4, margin=1.0)
    with pytest.raises(RuntimeError, match=r"call reset\(\) before"):
        term.update(far(1.0, 1.0))
    with pytest.raises(RuntimeError, match=r"call reset\(\) and update\(\) before step"):
        term.step(1)
    learn(term, far(1.0, 1.0))
    with pytest.raises(RuntimeError, match="reset"):
        term.update(far(1.0, 1.0))
    before = term.multipliers.clone()
    term.reset()
    with pytest.raises(ValueError, match="hold no sample"):
        term.step(2)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be finite"):
            term.update(far(1.0, 1.0).index_fill(0, torch.tensor([2]), bad))
    with pytest.raises(ValueError, match=r"4 classes on axis 1, got shape \(5, 3\)"):
        term.update(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="labels must have the shape"):
        term.update(far(1.0, 1.0), torch.zeros(3))
    with pytest.raises(ValueError, match="hold no sample"):
        term.step(2)
    assert torch.equal(term.multipliers, before)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        term.step(0)
    with pytest.raises(ValueError, match="rho must be > 0, got 0"):
        penalty(exact(1), exact(1), exact(0))
    with pytest.raises(ValueError, match="margin must be > 0"):
        constraint(torch.zeros(2, 3), -1.0)
    with pytest.raises(ValueError, match=r"must be \(B, C\)"):
        constraint(torch.zeros(3), 1.0)
