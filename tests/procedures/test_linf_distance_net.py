"""Training of networks of Linf distances: the losses by hand, schedules, the learned scale, what is refused."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.assemble import build, resolve
from weathered.certify.linf_margin import LinfMargin
from weathered.core.errors import Incompatible, SpecError
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.cross_entropy import LabelSmoothing
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.nn.linf_net import LinfNetwork
from weathered.procedures.linf_distance_net import (
    ADAM_EPSILON,
    BETA2,
    SCALE,
    LinfDistanceNet,
    clipped_hinge,
    geometric,
    hinge,
    ramp,
)
from weathered.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*steps are at p = infinity")

SPEC = "linf-net:width=16,depth=2"
SETTINGS = Settings(epochs=4, batch_size=50, optimizer="adam", lr=0.03, weight_decay=0.0)
ROWS = torch.arange(50)


def logits_and_labels(seed: int, size: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(size, classes, generator=rng), torch.randint(classes, (size,), generator=rng)


def run_of(data, procedure: LinfDistanceNet | None = None, spec: str = SPEC, settings: Settings = SETTINGS, **parts):
    return Run(build_model(spec, data), data, procedure=procedure or LinfDistanceNet(), settings=settings, **parts)


def network_of(run: Run) -> LinfNetwork:
    assert isinstance(run.model, LinfNetwork)
    return run.model


@given(st.integers(0, 10**6), st.floats(0.05, 5))
def test_the_clipped_hinge_is_the_largest_clipped_cost_of_a_class(seed, epsilon):
    logits, labels = logits_and_labels(seed)
    found = clipped_hinge(logits, labels, epsilon)
    for row, label in enumerate(labels.tolist()):
        costs = [0.0]
        for j in range(4):
            if j != label:
                m = ((logits[row, j] + epsilon) - (logits[row, label] - epsilon)) / (2 * epsilon)
                costs.append(float(m.clamp(0, 1)))
        assert float(found[row]) == pytest.approx(max(costs), abs=1e-5)
        assert 0 <= float(found[row]) <= 1


def test_the_flat_parts_of_the_clipped_hinge_have_exactly_no_gradient():
    """Wrong, tied, sloping, at the margin, beyond it."""
    logits = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.5], [2.0, 1.0], [5.0, 1.0]], requires_grad=True)
    losses = clipped_hinge(logits, torch.zeros(5).long(), 0.5)
    assert losses.tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert gradient.tolist() == [[0, 0], [0, 0], [-1, 1], [0, 0], [0, 0]]


@given(st.integers(0, 10**6), st.floats(0.05, 5))
def test_the_hinge_weighs_the_largest_and_the_mean_of_all_costs(seed, epsilon):
    logits, labels = logits_and_labels(seed)
    found = hinge(logits, labels, epsilon)
    for row, label in enumerate(labels.tolist()):
        costs = [
            0.0 if j == label else max(0.0, 1 - float(logits[row, label] - logits[row, j]) / (2 * epsilon))
            for j in range(4)
        ]
        assert float(found[row]) == pytest.approx(0.75 * max(costs) + 0.25 * sum(costs) / 4, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", [clipped_hinge, hinge])
def test_a_length_must_be_positive(loss):
    for epsilon in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"epsilon must be in \(0, infinity\)"):
            loss(*logits_and_labels(0), epsilon)


def test_exponent_and_weight_follow_one_ramp():
    procedure = LinfDistanceNet(lambda_start=0.1, lambda_end=0.001, start=0.2, end=0.7)
    assert [procedure.exponent_at(t) for t in (0.0, 0.2)] == [8.0, 8.0]
    assert procedure.exponent_at(0.45) == pytest.approx(math.sqrt(8 * 1000))
    assert procedure.exponent_at(0.699) < 1000
    assert [procedure.exponent_at(t) for t in (0.7, 0.9)] == [math.inf, math.inf]
    assert [procedure.lambda_at(t) for t in (0.1, 0.45, 0.7, 1.0)] == pytest.approx([0.1, 0.01, 0.001, 0.001])
    assert LinfDistanceNet(lambda_start=0.0, lambda_end=0.0).lambda_at(0.5) == 0
    assert ramp(0.45, 0.2, 0.7) == pytest.approx(0.5)
    assert geometric(2.0, 8.0, 0.5) == pytest.approx(4.0)


def test_the_loss_is_that_of_the_formula_with_epsilon_in_units_of_the_network(small_digits):
    procedure = LinfDistanceNet(epsilon=0.2, lambda_start=0.3, lambda_end=0.03)
    run = run_of(small_digits, procedure)
    network = network_of(run)
    run.begin_step()
    network.exponent = 8.0
    with torch.no_grad():
        predicted = run.model.train()(small_digits.floats(ROWS)).argmax(1)
        # some right, so that margins differ in sign
        labels = torch.where(ROWS % 2 == 0, predicted, small_digits.labels[ROWS])
        batch = run.prepare(small_digits.floats(ROWS), labels, ROWS)
        network.exponent = 3.0
        run.modules[SCALE].value.mul_(1.7)
        found = procedure.loss(run, batch)
        assert network.exponent == 8.0
        logits = run.model(batch.x)
        half = 0.2 / network.scale
        own = logits.gather(1, batch.target.single()[:, None])
        gap = own - logits
        clipped = (1 - gap / (2 * half)).scatter(1, batch.target.single()[:, None], 0.0).clamp(0, 1).amax(1)
        entropy = F.cross_entropy(1.7 * logits, batch.target.single())
    assert_close(found, clipped.mean() + 0.3 * entropy, rtol=1e-5, atol=1e-5)
    assert 0 < float(clipped.mean()) < 1


def test_without_cross_entropy_wide_margins_cost_nothing_and_wrong_samples_teach_nothing(small_digits):
    procedure = LinfDistanceNet(epsilon=1e-4, lambda_start=0.0, lambda_end=0.0)
    run = run_of(small_digits, procedure)
    assert run.modules == {}
    batch = run.prepare(small_digits.floats(ROWS), small_digits.labels[ROWS], ROWS)
    run.model.train()
    network_of(run).exponent = 8.0
    with torch.no_grad():
        predicted = run.model(batch.x).argmax(1)
    right = batch.target.single() == predicted
    for labels, cost in ((predicted, 0.0), (torch.where(right, (predicted + 1) % 10, batch.target.single()), 1.0)):
        run.begin_step()
        loss = procedure.loss(run, run.prepare(batch.x, labels, ROWS))
        assert float(loss.detach()) == cost
        gradients = torch.autograd.grad(loss, list(run.model.parameters()))
        assert all(float(found.abs().max()) == 0 for found in gradients)


def test_the_scale_moves_at_its_own_rate_and_stays_out_of_predictions(small_digits):
    run = run_of(small_digits, LinfDistanceNet(scale_rate=0.2), settings=replace(SETTINGS, schedule="constant"))
    scale = run.modules[SCALE]
    assert float(scale(torch.ones(())).detach()) == pytest.approx(1)
    fit(run, max_steps=1)
    # the first step of Adam has the length of the learning rate, whatever the gradient
    assert abs(float(scale(torch.ones(())).detach()) - 1) == pytest.approx(0.2 * 0.03, rel=1e-3)
    before = run.predict(small_digits)
    with torch.no_grad():
        scale.value.mul_(9.0)
    assert torch.equal(run.predict(small_digits), before)
    assert run_of(small_digits, LinfDistanceNet(loss="hinge")).modules == {}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_adam_is_given_its_small_epsilon(small_digits, optimizer):
    run = run_of(small_digits, settings=replace(SETTINGS, optimizer=optimizer, momentum=0.8))
    fit(run, max_steps=1)
    (group,) = run.optimizer.param_groups
    if optimizer == "sgd":
        assert "eps" not in group
    else:
        assert (group["betas"], group["eps"]) == ((0.8, BETA2), ADAM_EPSILON) == ((0.8, 0.99), 1e-10)


@pytest.mark.parametrize("loss", ["mixture", "hinge"])
def test_predictions_are_those_of_infinity_at_any_time_and_the_run_ends_there(small_digits, loss):
    run = run_of(small_digits, LinfDistanceNet(loss=loss))
    x = small_digits.floats(ROWS)
    fit(run, max_steps=6)
    network = network_of(run)
    assert 8 < network.exponent < 1000

    def by_hand() -> torch.Tensor:
        features = network.normalize(x).flatten(1)
        first, last = network.distance_layers
        features = torch.cdist(features, first.weight, p=math.inf) - first.running_mean
        assert last.bias is not None
        return -torch.cdist(features, last.weight, p=math.inf) - last.bias

    with torch.no_grad():
        assert_close(run.predict(small_digits)[:50], by_hand(), rtol=0, atol=1e-5)
        with pytest.raises(Incompatible, match="only p = infinity is certified"):
            LinfMargin().certify(run.procedure.predictor(run), x)
    fit(run)
    assert network.exponent == math.inf
    with torch.no_grad():
        assert_close(run.predict(small_digits)[:50], by_hand(), rtol=0, atol=1e-5)
    assert bool((LinfMargin().certify(run.procedure.predictor(run), x).radii >= 0).all())


def test_a_run_of_one_step_ends_at_infinity(small_digits):
    run = fit(run_of(small_digits, settings=replace(SETTINGS, epochs=1, batch_size=200)))
    assert run.total_steps == 1
    assert network_of(run).exponent == math.inf


@pytest.mark.parametrize(("end", "settled"), [(0.5, 50), (0.75, 25), (0.81, 19), (0.99, 1)])
def test_a_run_with_few_steps_at_infinity_is_warned_of(small_digits, end, settled):
    settings, procedure = replace(SETTINGS, epochs=25), LinfDistanceNet(end=end)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run = fit(run_of(small_digits, procedure, settings=settings), max_steps=5)
    assert run.total_steps == 100
    said = [str(warning.message) for warning in found]
    assert len(said) == (settled < 20)
    assert all(f": {settled} of 100 steps are at p = infinity" in text and "lower end" in text for text in said)


def test_saved_and_loaded_it_goes_on_bit_for_bit(small_digits):
    whole = fit(run_of(small_digits))
    half = fit(run_of(small_digits), max_steps=7)
    rest = run_of(small_digits)
    rest.load_state_dict(half.state_dict())
    fit(rest)
    for one, other in ((whole.model, rest.model), (whole.modules[SCALE], rest.modules[SCALE])):
        found = other.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in one.state_dict().items())


def test_what_does_not_fit_is_refused_with_a_way_out(small_digits):
    with pytest.raises(Incompatible, match=r"needs 'linf_distances'.*To provide it, build the model with --model linf"):
        run_of(small_digits, spec="cnn_small")
    with pytest.raises(Incompatible, match="LabelSmoothing fills the slot 'loss', which LinfDistanceNet never calls"):
        run_of(small_digits, loss=LabelSmoothing(0.1))
    with pytest.raises(Incompatible, match=r"LinfDistanceNet needs 'hard_target'.*Drop one"):
        run_of(small_digits, transforms=[MixUp()])
    run = run_of(small_digits)
    with pytest.raises(ValueError, match="LinfDistanceNet needs inputs in"):
        run.procedure.loss(run, run.prepare(small_digits.floats(ROWS) * 3 - 1, small_digits.labels[ROWS], ROWS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"epsilon must be in \(0, 1\], got 0.0"),
        ({"epsilon": 8}, r"epsilon must be in \(0, 1\], got 8"),
        ({"loss": "margin"}, "loss must be 'mixture' or 'hinge', got 'margin'"),
        ({"lambda_end": 0.0}, "must both be > 0, or both 0, got 0.1 and 0.0"),
        ({"lambda_start": -1.0}, "must both be > 0, or both 0"),
        ({"lambda_start": math.inf}, "lambda_start must be in"),
        ({"p_start": 0.5}, "1 <= p_start <= p_end, got 0.5 and 1000.0"),
        ({"p_end": 4.0}, "1 <= p_start <= p_end, got 8.0 and 4.0"),
        ({"p_end": math.inf}, r"p_end must be in \[0, infinity\), got inf"),
        ({"end": 1.0}, "0 <= start < end < 1, got 0.08 and 1.0"),
        ({"start": 0.96}, "0 <= start < end < 1, got 0.96 and 0.96"),
        ({"scale_rate": 0.0}, r"scale_rate must be in \(0, infinity\), got 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinfDistanceNet(**arguments)
    if "loss" not in arguments and math.inf not in arguments.values():
        spec = "linf-distance-net:" + ",".join(f"{name}={value}" for name, value in arguments.items())
        with pytest.raises(SpecError, match="linf-distance-net: "):
            build(resolve([spec])[0])


def test_the_recipe_has_the_settings_of_the_paper():
    recipe = Recipe.from_file(Path(__file__).parents[2] / "recipes" / "linf-distance-net-cifar10.toml")
    procedure = build(next(use for use in resolve(recipe.use) if use.slug == "linf-distance-net"))
    assert procedure.epsilon == pytest.approx(24 / 255)
    assert (procedure.start, procedure.end) == pytest.approx((100 / 1300, 1250 / 1300))
    assert recipe.settings.lr * procedure.scale_rate == pytest.approx(0.006)
