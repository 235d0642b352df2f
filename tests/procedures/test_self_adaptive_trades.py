"""TRADES with self-adaptive targets: its two limits, the loss and its gradient, its state, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from scaled import Multiplied, Scaled
from weathered.attacks.trades import SPREAD, climb_divergence
from weathered.core.batch import Batch
from weathered.core.errors import Incompatible, NonFinite
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target_table import certainty_weights, label_table
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.self_adaptive_trades import SelfAdaptiveTrades
from weathered.procedures.self_adaptive_training import SelfAdaptiveTraining

SGD = Settings(epochs=2, batch_size=12, lr=0.05, weight_decay=0.0, schedule="constant")
ROWS = torch.tensor([40, 3, 11, 26, 7])


def run_of(images, procedure, model="cnn_small:width=8", settings: Settings = SGD, **parts) -> Run:
    return Run(build_model(model, images), images, procedure=procedure, settings=settings, **parts)


def batch_of(images, rows) -> Batch:
    return Batch.of(images.floats(rows), images.labels[rows]).replace(index=rows)


def attacked(run: Run, batch: Batch) -> torch.Tensor:
    """The attack of a step, from the noise that the step draws."""
    run.begin_step()
    noise = torch.randn(batch.x.shape, generator=run.generator("trades start", shared=True))
    run.begin_step()
    procedure = run.procedure
    assert isinstance(procedure, SelfAdaptiveTrades)
    start = batch.x + SPREAD * noise
    return climb_divergence(run.model, batch.x, start, procedure.epsilon, procedure.step_size, procedure.steps)


def divergence_in_torch(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL as torch writes it: the target second, in probabilities."""
    return F.kl_div(other.log_softmax(1), logits.softmax(1), reduction="sum") / len(logits)


def assert_same_loss_and_gradient(run: Run, found: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    parameters = list(run.model.parameters())
    pairs = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for one, other in pairs:
        assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_without_the_divergence_it_is_self_adaptive_training_bit_for_bit(images):
    ours, theirs = SelfAdaptiveTrades(beta=0.0, start=0.25), SelfAdaptiveTraining(0.25)
    run, other = (fit(run_of(images, procedure)) for procedure in (ours, theirs))
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    assert torch.equal(ours.targets, theirs.targets)
    assert not torch.equal(ours.targets, label_table(images.labels, 3))


@pytest.mark.parametrize(("start", "momentum"), [(0.0, 1.0), (0.5, 0.9)])
def test_with_targets_that_stay_it_is_trades(images, start, momentum):
    run = run_of(images, SelfAdaptiveTrades(3.0, 0.1, 0.03, 4, start=start, momentum=momentum), "mlp:width=16")
    batch = batch_of(images, ROWS)
    adversary = attacked(run, batch)
    natural = run.model(batch.x)
    expected = F.cross_entropy(natural, batch.target.single()) + 3 * divergence_in_torch(natural, run.model(adversary))
    assert_same_loss_and_gradient(run, run.procedure.loss(run, batch), expected)
    assert float(divergence_in_torch(natural, run.model(adversary))) > 1e-5


def test_a_step_by_hand_moves_targets_by_clean_predictions_and_weighs_the_natural_term_alone(images):
    procedure = SelfAdaptiveTrades(6.0, 0.1, 0.03, 4, start=0.0, momentum=0.7)
    run = run_of(images, procedure, "mlp:width=16")
    batch = batch_of(images, ROWS)
    adversary = attacked(run, batch)
    natural = run.model(batch.x)
    target = 0.7 * label_table(images.labels, 3)[ROWS] + 0.3 * natural.detach().softmax(1)
    losses = certainty_weights(target) * F.cross_entropy(natural, target, reduction="none")
    expected = losses.mean() + 6 * divergence_in_torch(natural, run.model(adversary))
    assert_same_loss_and_gradient(run, procedure.loss(run, batch), expected)
    procedure.after_step(run)
    assert_close(procedure.targets[ROWS], target)


def test_the_gradient_passes_through_the_clean_prediction_of_the_divergence(images):
    run = run_of(images, SelfAdaptiveTrades(6.0, 0.1, 0.03, 4), "mlp:width=16")
    batch = batch_of(images, ROWS)
    adversary = attacked(run, batch)
    natural = run.model(batch.x)
    halved = F.cross_entropy(natural, batch.target.single())
    halved = halved + 6 * divergence_in_torch(natural.detach(), run.model(adversary))
    parameters = list(run.model.parameters())
    found = torch.autograd.grad(run.procedure.loss(run, batch), parameters)
    detached = torch.autograd.grad(halved, parameters)
    gaps = [float((one - other).abs().max()) for one, other in zip(found, detached, strict=True)]
    assert max(gaps) > 1e-4


def test_a_loss_with_a_scale_of_its_own_is_attacked_at_that_scale(images):
    run = run_of(images, SelfAdaptiveTrades(6.0, 0.1, 0.03, 1), "mlp:width=16", loss=Scaled())
    batch = batch_of(images, ROWS)
    run.begin_step()
    start = batch.x + SPREAD * torch.randn(batch.x.shape, generator=run.generator("trades start", shared=True))

    scaled = nn.Sequential(run.model, Multiplied())
    adversary = climb_divergence(scaled, batch.x, start, 0.1, 0.03, 1)
    assert not torch.equal(adversary, climb_divergence(run.model, batch.x, start, 0.1, 0.03, 1))
    expected = F.cross_entropy(scaled(batch.x), batch.target.single())
    expected = expected + 6 * divergence_in_torch(scaled(batch.x), scaled(adversary))
    run.begin_step()
    assert_close(run.procedure.loss(run, batch), expected)


def test_batch_statistics_see_clean_and_attacked_images_and_not_those_on_the_way(images):
    run = run_of(images, SelfAdaptiveTrades(epsilon=0.1, step_size=0.05, steps=3))
    norms = [module for module in run.model.modules() if isinstance(module, nn.BatchNorm2d)]
    fit(run, max_steps=2)
    assert norms
    assert [int(norm.get_buffer("num_batches_tracked")) for norm in norms] == [4] * len(norms)
    assert all(norm.training for norm in norms)


@pytest.mark.parametrize("start", [0.0, 0.375])
def test_resumes_bit_for_bit_with_its_table(images, assert_resumes, start):
    model, made = build_model("cnn_small:width=8", images), []

    def make() -> Run:
        made.append(SelfAdaptiveTrades(epsilon=0.1, step_size=0.05, steps=2, start=start, momentum=0.5))
        return Run(copy.deepcopy(model), images, procedure=made[-1], settings=SGD)

    assert_resumes(make)
    whole, first, second = made
    assert torch.equal(whole.targets, second.targets)
    assert not torch.equal(whole.targets, first.targets)


def test_noise_is_drawn_anew_in_each_step_and_alike_for_a_seed(images):
    procedure = SelfAdaptiveTrades(epsilon=0.1, step_size=0.05, steps=1)
    run, found = run_of(images, procedure, "mlp:width=16"), []
    for step in (0, 0, 1):
        run.step = step
        run.begin_step()
        found.append(procedure.attack(run, images.floats(ROWS)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_training_against_the_attack_resists_it(digits):
    """The attack on the network as trained, by its own predictions, with the noise of another seed."""
    train, test = digits.select(torch.arange(600)), digits.select(torch.arange(600, 1000))
    settings, kept = Settings(epochs=15, batch_size=60, lr=0.1), []
    for beta in (0.0, 6.0):
        procedure = SelfAdaptiveTrades(beta, epsilon=0.15, step_size=0.04, steps=5)
        run = fit(run_of(train, procedure, "mlp:width=64", settings))
        x = test.floats(torch.arange(len(test)))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        adversary = climb_divergence(run.model, x, x + SPREAD * noise, 0.15, 0.02, 20)
        with torch.no_grad():
            kept.append(float((run.model(adversary).argmax(1) == test.labels).double().mean()))
    assert kept[1] > kept[0] + 0.1


def test_weights_that_are_not_finite_stop_the_run_before_the_table(images):
    procedure = SelfAdaptiveTrades(start=0.0)
    run = run_of(images, procedure, "mlp:width=16")
    with torch.no_grad():
        next(iter(run.model.parameters()))[0] = math.nan
    with pytest.raises(NonFinite, match="SelfAdaptiveTrades"):
        fit(run, max_steps=1)
    assert torch.equal(procedure.targets, label_table(images.labels, 3))


def test_a_start_after_memorisation_is_warned_of_under_its_own_name(images):
    settings = Settings(epochs=20, batch_size=12, lr=0.1, weight_decay=0.0)
    procedure = SelfAdaptiveTrades(epsilon=0.01, step_size=0.01, steps=1, start=0.9)
    with pytest.warns(UserWarning, match="SelfAdaptiveTrades: at start=0.9 the network fits"):
        fit(run_of(images, procedure, "mlp:width=16", settings))


def test_tables_and_mixed_labels_are_refused(images, wine):
    with pytest.raises(Incompatible, match="SelfAdaptiveTrades needs 'range01'"):
        run_of(wine, SelfAdaptiveTrades(), "mlp:width=16")
    with pytest.raises(Incompatible, match="SelfAdaptiveTrades needs 'hard_target'"):
        run_of(images, SelfAdaptiveTrades(), transforms=[MixUp()])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"beta": -1.0}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"epsilon": 8.0}, "epsilon"),
        ({"step_size": -0.1}, "step_size"),
        ({"steps": 0}, "steps"),
        ({"start": 1.0}, "start"),
        ({"start": 70}, "start"),
        ({"momentum": 1.1}, "momentum"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        SelfAdaptiveTrades(**arguments)
