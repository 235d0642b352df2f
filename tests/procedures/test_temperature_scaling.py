"""Temperature scaling: the optimum and its bounds, what it leaves alone, and runs that fit it at their end."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered import TemperatureScaling
from weathered.core.errors import DataError, Incompatible
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.prepare import Splits
from weathered.loaded_run import load_run
from weathered.losses.ldam import LDAM
from weathered.nn.build import build_model
from weathered.procedures.temperature_scaling import TemperatureScaledTraining, fit_temperature
from weathered.recipe import DataOptions, Recipe
from weathered.training import train


def drawn(seed=0, rows=300, classes=4, factor=1.0):
    """Logits of which the softmax is the chance of the labels, then multiplied by `factor`."""
    rng = generator(seed, "logits")
    logits = 2 * torch.randn(rows, classes, generator=rng, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]
    return factor * logits, labels


def loss(logits, labels, temperature):
    return float(F.cross_entropy(logits.double() / temperature, labels))


@given(st.integers(0, 1000), st.floats(0.05, 50), st.integers(2, 9))
@settings(deadline=None, max_examples=40)
def test_no_other_temperature_has_a_smaller_loss(seed, factor, classes):
    logits, labels = drawn(seed, classes=classes, factor=factor)
    found = fit_temperature(logits, labels)
    least = loss(logits, labels, found)
    assert least <= loss(logits, labels, 1.0) + 1e-12
    for other in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert least <= loss(logits, labels, other * found) + 1e-12
    free = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.cross_entropy(free * logits, labels), free)
    assert abs(float(slope)) < 1e-9 * float(logits.abs().max())


@given(st.integers(0, 1000), st.floats(0.1, 10))
@settings(deadline=None, max_examples=20)
def test_logits_that_are_larger_by_a_factor_need_a_temperature_larger_by_it(seed, factor):
    logits, labels = drawn(seed)
    expected = factor * fit_temperature(logits, labels)
    assert fit_temperature(factor * logits, labels) == pytest.approx(expected, rel=1e-8)
    offsets = torch.randn(len(logits), 1, generator=generator(seed, "offsets"), dtype=torch.float64)
    assert fit_temperature(factor * logits + 100 * offsets, labels) == pytest.approx(expected, rel=1e-8)


def test_calibrated_logits_need_none():
    logits, labels = drawn(rows=200_000)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.02)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7, abs=0.14)


def test_two_classes_in_closed_form():
    """Three of four right at one lead a: sigmoid(a / T) = 3/4, so T = a / log 3."""
    logits = torch.tensor([[2.5, 0.0]] * 4)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2.5 / math.log(3), rel=1e-12)


def test_the_bounds_are_reached_with_a_warning_and_are_still_the_best():
    logits, labels = drawn()
    with pytest.warns(UserWarning, match="no logit leads its label in the 300 held-out rows, so .* is 0.001"):
        right = fit_temperature(logits, logits.argmax(1))
    assert right == pytest.approx(1e-3)
    with pytest.warns(UserWarning, match="next to nothing of the labels in the 300 .* temperature is 1000"):
        wrong = fit_temperature(logits, logits.argmin(1))
    assert wrong == pytest.approx(1e3)
    assert loss(logits, logits.argmin(1), wrong) < loss(logits, logits.argmin(1), 500)
    assert fit_temperature(torch.full((5, 3), 2.0), labels[:5] % 3) == 1


@given(st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_the_order_of_classes_stays_and_so_does_what_is_given(seed):
    logits, labels = (tensor[:200] for tensor in drawn(seed, factor=5))
    before = logits.clone()
    scaling = TemperatureScaling().fit(logits, labels)
    found = scaling.transform(logits)
    assert_close(found, logits / scaling.temperature)
    assert torch.equal(found.argmax(1), logits.argmax(1))
    assert torch.equal(logits, before)
    assert scaling.transform(logits.float()).dtype == torch.float32
    other = TemperatureScaling()
    assert torch.equal(other.transform(logits), logits)
    other.load_state_dict(scaling.state_dict())
    assert torch.equal(other.transform(logits), found)


def test_bad_input_is_refused():
    logits, labels = drawn(rows=6)
    for value in (torch.nan, torch.inf):
        broken = logits.clone()
        broken[2, 1] = value
        for call in (lambda x: fit_temperature(x, labels), TemperatureScaling().transform):
            with pytest.raises(DataError, match="logits must be finite, but row 2"):
                call(broken)
    for wrong in (logits[0], logits[:, :1], logits.long()):
        with pytest.raises(DataError, match=r"logits must be floats \(N, C\) with C >= 2"):
            fit_temperature(wrong, labels)
    for few in (labels[:5], labels.double(), labels[:, None]):
        with pytest.raises(DataError, match="expected at least one row"):
            fit_temperature(logits, few)
    with pytest.raises(DataError, match="expected at least one row"):
        fit_temperature(logits[:0], labels[:0])
    for label in (-1, 4):
        with pytest.raises(DataError, match=rf"labels must be in \[0, 3\] for 4 logits, got {label}"):
            fit_temperature(logits, torch.tensor([0, 1, 2, 3, 0, label]))


@pytest.fixture(scope="module")
def splits(digits):
    rows = torch.randperm(len(digits), generator=generator(0, "split"))
    parts = (digits.select(part) for part in rows[:500].split((200, 100, 200)))
    return Splits(*parts)


def make(splits, procedure=None, head="linear", **changes):
    model = build_model("cnn_small:width=8", splits.train, head=head)
    given = Settings(epochs=3, batch_size=50, lr=0.05)
    return Run(model, splits.train, procedure=procedure, validation=splits.validation, settings=given, **changes)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_training_is_plain_and_predictions_are_divided(splits, head):
    """A cosine head brings a loss with a scale of its own, which the temperature comes upon."""
    changes = {"loss": LDAM(splits.train.class_counts, scale=10.0)} if head == "cosine" else {}
    plain, run = (
        fit(make(splits, head=head, **changes)),
        fit(make(splits, TemperatureScaledTraining(), head, **changes)),
    )
    for name, value in plain.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value)
    temperature = run.procedure.scaling.temperature
    expected = fit_temperature(plain.predict(splits.validation), splits.validation.labels)
    assert temperature == pytest.approx(expected, rel=1e-6)
    assert temperature != 1
    for data in (splits.validation, splits.test):
        assert_close(run.predict(data), plain.predict(data) / temperature, atol=1e-5, rtol=1e-5)
        assert torch.equal(run.predict(data).argmax(1), plain.predict(data).argmax(1))
    held = splits.validation
    assert loss(run.predict(held), held.labels, 1) < loss(plain.predict(held), held.labels, 1)


def test_until_its_end_a_run_has_the_temperature_one(splits):
    run = fit(make(splits, TemperatureScaledTraining()), max_steps=4)
    assert run.procedure.metrics() == {"temperature": 1.0}
    fit(run)
    assert run.procedure.metrics()["temperature"] != 1.0


def test_resumes_bit_for_bit(splits, assert_resumes):
    assert_resumes(lambda: make(splits, TemperatureScaledTraining()))
    whole, first, second = (make(splits, TemperatureScaledTraining()) for _ in range(3))
    fit(whole)
    second.load_state_dict(fit(first, max_steps=7).state_dict())
    fit(second)
    assert second.procedure.state_dict() == whole.procedure.state_dict()


def test_networks_without_a_named_classifier_are_divided_too(splits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    procedure = TemperatureScaledTraining()
    run = Run(model, splits.train, procedure=procedure, validation=splits.validation, settings=Settings(epochs=2))
    fit(run)
    with torch.no_grad():
        x = splits.test.floats(torch.arange(len(splits.test)))
        assert_close(run.predict(splits.test), model(x) / procedure.scaling.temperature)


def test_needs_validation_data(splits):
    with pytest.raises(Incompatible, match="fits the temperature on it"):
        make(splits._replace(validation=None), TemperatureScaledTraining())


@pytest.mark.parametrize("use", [("temperature-scaling",), ("temperature-scaling", "ldam")])
def test_a_finished_run_predicts_with_its_temperature(tmp_path, use):
    recipe = Recipe(
        data=DataOptions(train="digits", limit=300, validation=0.3),
        model="mlp:width=32",
        use=use,
        settings=Settings(epochs=2, batch_size=50),
    )
    folder = train(recipe, tmp_path)
    loaded = load_run(folder.path)
    temperature = folder.metrics()[-1]["temperature"]
    found, held = loaded.predict(loaded.splits.validation), loaded.splits.validation
    assert temperature != 1
    assert fit_temperature(temperature * found, held.labels) == pytest.approx(temperature, rel=1e-4)
