"""ABSGD: the gradient of its objective, its limits, its state, and a run that resumes."""

import gc
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.assemble import build, resolve
from weathered.core.errors import NonFinite
from weathered.core.facts import traits_of
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.weighting.absgd import ABSGD, absgd_weights
from weathered.weighting.base import class_weights

TEMPERATURES = [-5.0, -1.0, -0.3, 0.3, 1.0, 5.0]
LABELS = torch.zeros(8, dtype=torch.long)


def losses(size: int = 8, seed: int = 0) -> torch.Tensor:
    return 4 * torch.rand(size, generator=generator(seed, "losses"), dtype=torch.float64)


def objective(values: torch.Tensor, temperature: float) -> torch.Tensor:
    return temperature * (torch.logsumexp(values / temperature, 0) - math.log(len(values)))


def step(part: ABSGD, values: torch.Tensor) -> torch.Tensor:
    return part(values, torch.zeros(len(values), dtype=torch.long), 0.5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_is_that_of_the_robust_objective(temperature):
    x = torch.randn(8, 5, generator=generator(0), dtype=torch.float64)
    y = torch.arange(8) % 3
    w = torch.randn(5, 3, generator=generator(1), dtype=torch.float64, requires_grad=True)
    values = F.cross_entropy(x @ w, y, reduction="none")
    weights = step(ABSGD(temperature, gamma=1.0), values)
    (ours,) = torch.autograd.grad((weights * values).mean(), w, retain_graph=True)
    (expected,) = torch.autograd.grad(objective(values, temperature), w)
    assert_close(ours, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("first", ["batch", "zero"])
def test_gamma_one_sums_to_one_over_alpha(temperature, alpha, first):
    part = ABSGD(temperature, gamma=1.0, alpha=alpha, first=first)
    for seed in range(4):
        assert float(step(part, losses(seed=seed)).mean()) == pytest.approx(1 / alpha, rel=1e-12)


@pytest.mark.parametrize("temperature", [1e6, -1e6])
def test_infinite_temperature_is_the_plain_mean(temperature):
    for gamma in (0.4, 1.0):
        part = ABSGD(temperature, gamma=gamma)
        for seed in range(3):
            assert_close(step(part, losses(seed=seed)), torch.ones(8).double(), rtol=1e-4, atol=0)


def test_temperature_towards_zero_takes_the_extreme_loss():
    values = losses()
    for temperature, extreme in ((1e-4, values.max()), (-1e-4, values.min())):
        weights = step(ABSGD(temperature, gamma=1.0), values)
        assert_close((weights * values).mean(), extreme, rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("gamma", [0.1, 0.9, 1.0])
def test_equal_losses_at_the_fixed_point_weigh_one_over_alpha(alpha, gamma):
    part = ABSGD(2.0, gamma=gamma, alpha=alpha)
    for _ in range(3):
        assert_close(step(part, torch.full((8,), 1.7).double()), torch.full((8,), 1 / alpha).double())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_first_step_from_zero_sums_to_one_over_gamma_alpha(temperature):
    part = ABSGD(temperature, gamma=0.1, alpha=0.5, first="zero")
    assert float(step(part, losses()).mean()) == pytest.approx(20)
    # and the average forgets its start
    for _ in range(400):
        step(part, losses())
    assert float(step(part, losses()).mean()) == pytest.approx(1 / 0.5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("first", ["batch", "zero"])
def test_a_constant_added_to_every_loss_changes_nothing(temperature, first):
    plain, shifted = (ABSGD(temperature, gamma=0.7, alpha=0.5, first=first) for _ in range(2))
    for seed in range(5):
        assert_close(step(shifted, losses(seed=seed) + 30), step(plain, losses(seed=seed)), rtol=1e-9, atol=0)


@given(st.lists(st.floats(0, 50), min_size=2, max_size=20), st.floats(0.1, 10), st.booleans())
def test_weights_rise_with_the_loss_for_positive_temperature_and_fall_for_negative(values, size, negative):
    ordered = torch.tensor(values, dtype=torch.float64).sort().values
    part = ABSGD(-size if negative else size)
    step(part, losses())
    change = step(part, ordered).diff()
    assert (change <= 0).all() if negative else (change >= 0).all()


@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.floats(0.1, 10))
def test_objective_lies_between_mean_and_extreme(values, size):
    v = torch.tensor(values, dtype=torch.float64)
    for temperature, low, high in ((size, v.mean(), v.max()), (-size, v.min(), v.mean())):
        weights = step(ABSGD(temperature, gamma=1.0), v)
        p = weights / len(v)
        # the objective by its variational form: sum p l - temperature KL(p || uniform)
        dual = (p * v).sum() - temperature * torch.special.xlogy(p, weights).sum()
        assert_close(dual, objective(v, temperature), rtol=1e-9, atol=1e-9)
        assert low - 1e-9 <= dual <= high + 1e-9


def test_no_graph_is_kept_over_a_thousand_steps():
    part = ABSGD(1.0)
    parameter = torch.ones(8, dtype=torch.float64, requires_grad=True)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def steps(count: int) -> None:
        for seed in range(count):
            assert not step(part, parameter * losses(seed=seed)).requires_grad

    steps(10)
    before = tensors()
    steps(1000)
    assert tensors() <= before
    assert not any(isinstance(value, torch.Tensor) for value in part.state_dict().values())


def test_equals_the_direct_formula():
    part = ABSGD(-2.0, gamma=0.4, alpha=0.7, first="zero")
    u = 0.0
    for seed in range(6):
        e = (losses(seed=seed) / -2.0).exp()
        u = 0.6 * u + 0.4 * 0.7 * float(e.mean())
        assert_close(step(part, losses(seed=seed)), e / u)


def test_huge_losses_do_not_overflow():
    part = ABSGD(0.01)
    for seed in range(3):
        weights = step(part, 1e4 * losses(seed=seed))
        assert torch.isfinite(weights).all()
    assert float(step(part, 1e6 * losses()).max()) <= 8 / 0.9 + 1e-9


def test_float32_losses_give_float32_weights():
    assert step(ABSGD(1.0), losses().float()).dtype == torch.float32
    assert traits_of(ABSGD(1.0)).batchwise


def test_first_stage_weighs_one_and_leaves_the_state():
    part = ABSGD(1.0, start=0.5)
    assert torch.equal(part(losses(), LABELS, 0.49), torch.ones(8).double())
    assert part.state_dict() == {"logu": None}
    assert not torch.equal(part(losses(), LABELS, 0.5), torch.ones(8).double())


def test_state_goes_through_a_checkpoint():
    straight, resumed = ABSGD(1.0, gamma=0.3), ABSGD(1.0, gamma=0.3)
    step(straight, losses())
    resumed.load_state_dict(straight.state_dict())
    assert torch.equal(step(straight, losses(seed=1)), step(resumed, losses(seed=1)))
    resumed.load_state_dict(ABSGD(1.0).state_dict())
    assert torch.equal(step(resumed, losses(seed=2)), step(ABSGD(1.0, gamma=0.3), losses(seed=2)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [1.0, -1.0])
def test_a_loss_that_is_not_finite_raises_before_the_state_changes(bad, temperature):
    part = ABSGD(temperature)
    values = losses()
    values[3] = bad
    for _ in range(2):
        before = part.state_dict()
        with pytest.raises(NonFinite, match="at position 3"):
            step(part, values)
        assert part.state_dict() == before
        step(part, losses())


@pytest.mark.parametrize("values", [torch.tensor(1.0), torch.zeros(0), torch.ones(2, 2)])
def test_losses_must_be_one_per_sample(values):
    with pytest.raises(ValueError, match="one for each sample and not reduced"):
        absgd_weights(values, 0.0, 1.0)
    with pytest.raises(ValueError, match="one for each sample and not reduced"):
        ABSGD(1.0)(values, LABELS, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and not 0"),
        ({"temperature": math.nan}, "temperature must be finite"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\]"),
        ({"gamma": 1.1}, "gamma must be in"),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"start": 5}, "a share of training and not an epoch"),
        ({"first": "one"}, "'batch' or 'zero'"),
        ({"classes_start": 160}, "classes_start must be in"),
        ({"rule": "median", "class_counts": [1, 2]}, "'effective' or 'inverse'"),
        ({"rule": "effective", "beta": 1.0, "class_counts": [1, 2]}, "beta must be in"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ABSGD(**{"temperature": 1.0, **options})


COUNTS = [60, 25, 10, 5]


def mixed_labels() -> torch.Tensor:
    return torch.tensor([0, 0, 0, 1, 1, 2, 3, 0])


@pytest.mark.parametrize("temperature", [-2.0, 2.0])
def test_class_weights_count_in_the_exponent_and_in_the_product(temperature):
    """Step by step as the source has it, with l = w_y times the loss."""
    part = ABSGD(temperature, gamma=0.4, alpha=0.7, first="zero", rule="effective", beta=0.99, class_counts=COUNTS)
    n = torch.tensor(COUNTS).double()
    w = 1 / ((1 - 0.99**n) / (1 - 0.99))
    w = (4 * w / w.sum())[mixed_labels()]
    u = 0.0
    for seed in range(4):
        raw = losses(seed=seed).requires_grad_()
        e = (w * raw.detach() / temperature).exp()
        u = 0.6 * u + 0.4 * 0.7 * float(e.mean())
        weights = part(raw.detach(), mixed_labels(), 0.5)
        (ours,) = torch.autograd.grad((weights * raw).mean(), raw)
        assert_close(ours, w * e / (8 * u))


def test_class_weights_switch_on_by_themselves():
    part = ABSGD(
        1.0, gamma=1.0, start=0.6, rule="inverse", classes_start=0.3, add_mean=True, class_counts=torch.tensor(COUNTS)
    )
    w = class_weights(COUNTS, rule="inverse")[mixed_labels()]
    assert torch.equal(part(losses(), mixed_labels(), 0.29), torch.ones(8).double())
    assert_close(part(losses(), mixed_labels(), 0.59), w)
    assert_close(part(losses(), mixed_labels(), 0.6), w * (8 * (w * losses()).softmax(0) + 1))
    target = Target.hard(mixed_labels()).mix(torch.arange(8).flip(0), torch.tensor(0.25))
    blend = 0.25 * w + 0.75 * w.flip(0)
    assert_close(part(losses(), target, 0.5), blend)


def test_equal_counts_weigh_as_without_a_rule():
    plain, equal = ABSGD(-1.0), ABSGD(-1.0, rule="effective", class_counts=[7] * 4)
    for seed in range(3):
        assert_close(equal(losses(seed=seed), mixed_labels(), 0.5), step(plain, losses(seed=seed)))


def test_the_mean_may_be_added():
    plain, added = ABSGD(-1.0, start=0.5), ABSGD(-1.0, start=0.5, add_mean=True)
    assert torch.equal(added(losses(), LABELS, 0.4), torch.ones(8).double())
    for seed in range(3):
        assert_close(step(added, losses(seed=seed)), step(plain, losses(seed=seed)) + 1)


def test_counts_are_needed_with_a_rule_only(small_digits: Dataset):
    assert not traits_of(ABSGD(1.0, class_counts=COUNTS)).needs
    assert "class_counts" in traits_of(ABSGD(1.0, rule="inverse", class_counts=COUNTS)).needs
    with pytest.raises(ValueError, match="rule=inverse needs class_counts"):
        ABSGD(1.0, rule="inverse")
    with pytest.raises(ValueError, match="class 1 has 0"):
        ABSGD(1.0, rule="inverse", class_counts=[3, 0])
    part = build(resolve(["absgd:temperature=5.0,rule=effective,classes_start=0.8"])[0], small_digits)
    assert torch.equal(part.class_weights, class_weights(small_digits.class_counts))


def digits_run(data: Dataset) -> Run:
    settings = Settings(epochs=2, batch_size=50, lr=0.1)
    part = ABSGD(-1.0, start=0.25)
    return Run(lambda seed: build_model("mlp:width=16", data, seed=seed), data, reweight=part, settings=settings)


def test_a_run_resumes_bit_for_bit(small_digits: Dataset, tmp_path):
    whole = fit(digits_run(small_digits))
    fit(digits_run(small_digits), folder=tmp_path, max_steps=4)
    resumed = fit(digits_run(small_digits), folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert isinstance(whole.reweight, ABSGD)
    assert whole.reweight.logu is not None
