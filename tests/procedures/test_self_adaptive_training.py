"""Self-adaptive training: its limits, its gradient, its state, and what it refuses."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from scaled import Scaled
from weathered.core.batch import Batch
from weathered.core.checkpoint import load_checkpoint, newest_checkpoint
from weathered.core.errors import Incompatible, NonFinite
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target_table import certainty_weights, label_table
from weathered.data.dataset import Dataset
from weathered.losses.logitclip import LogitClip
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.self_adaptive_training import SelfAdaptiveTraining, reverse_cross_entropy

SGD = Settings(epochs=2, batch_size=12, lr=0.05, weight_decay=0.0, schedule="constant")


def run_of(images, procedure: SelfAdaptiveTraining, settings: Settings = SGD, model="mlp:width=16", **parts) -> Run:
    return Run(build_model(model, images), images, procedure=procedure, settings=settings, **parts)


def batch_of(images, rows) -> Batch:
    return Batch.of(images.floats(rows), images.labels[rows]).replace(index=rows)


ROWS = torch.tensor([40, 3, 11, 26, 7])


@pytest.mark.parametrize("procedure", [SelfAdaptiveTraining(0.0, momentum=1.0), SelfAdaptiveTraining(0.99)])
def test_with_targets_that_stay_it_is_plain_training(images, procedure):
    run = fit(run_of(images, procedure))
    plain = fit(Run(build_model("mlp:width=16", images), images, settings=SGD))
    for p, q in zip(plain.model.parameters(), run.model.parameters(), strict=True):
        assert_close(p, q, atol=1e-6, rtol=0)
    assert torch.equal(procedure.targets, label_table(images.labels, 3))
    assert torch.equal(procedure.corrected_labels(), images.labels)


@pytest.mark.parametrize("reverse", [0.0, 0.7])
def test_a_loss_with_a_scale_of_its_own_moves_targets_at_that_scale(images, reverse):
    procedure = SelfAdaptiveTraining(0.0, momentum=0.5, reverse=reverse)
    run, batch = run_of(images, procedure, loss=Scaled()), batch_of(images, ROWS)
    run.begin_step()
    procedure.table.begin()
    found = procedure.loss(run, batch)
    logits = 7 * run.model(batch.x)
    probability = logits.softmax(1).detach()
    targets = 0.5 * label_table(images.labels, 3)[ROWS] + 0.5 * probability
    losses = -(targets * logits.log_softmax(1)).sum(1) + reverse * reverse_cross_entropy(logits, targets)
    assert_close(found, (certainty_weights(targets) * losses).mean())


def test_targets_move_from_start_on_and_only_those_of_visited_rows(images):
    procedure = SelfAdaptiveTraining(0.25)
    run = run_of(images, procedure)
    fit(run, max_steps=2)
    assert torch.equal(procedure.targets, label_table(images.labels, 3))
    before = procedure.targets.clone()
    fit(run, max_steps=1)
    changed = (procedure.targets != before).any(1)
    assert torch.equal(changed.nonzero()[:, 0], run.order(0)[24:36].sort().values)
    assert_close(procedure.targets.sum(1), torch.ones(48), atol=1e-5, rtol=0)


def test_a_step_by_hand_updates_first_and_weighs_by_certainty(images):
    procedure = SelfAdaptiveTraining(0.0, momentum=0.7)
    run = run_of(images, procedure)
    batch = batch_of(images, ROWS)
    logits = run.model(batch.x)
    target = 0.7 * label_table(images.labels, 3)[ROWS] + 0.3 * logits.detach().softmax(1)
    weights = target.amax(1) / target.amax(1).mean()
    expected = (weights * -(target * logits.log_softmax(1)).sum(1)).mean()
    assert_close(procedure.loss(run, batch), expected)
    assert torch.equal(procedure.targets, label_table(images.labels, 3))
    procedure.after_step(run)
    assert_close(procedure.targets[ROWS], target)


class Lookup(nn.Module):
    """Logits that are parameters, one row for each input, which is its own number."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0].long()]


def lookup_run(procedure: SelfAdaptiveTraining, logits: torch.Tensor) -> tuple[Run, Batch]:
    """A run whose gradients are those at the logits, and a batch of all its rows."""
    size, classes = logits.shape
    data = Dataset.of(torch.arange(size)[:, None], torch.arange(size) % classes)
    run = Run(Lookup(logits), data, procedure=procedure, settings=Settings(epochs=1, batch_size=size))
    return run, Batch.of(data.floats(torch.arange(size)), data.labels)


LOGITS = 2 * torch.randn(9, 3, generator=torch.Generator().manual_seed(4))


def gradient(run: Run, batch: Batch) -> torch.Tensor:
    (found,) = torch.autograd.grad(run.procedure.loss(run, batch), list(run.model.parameters()))
    return found


def test_gradient_at_the_logits_is_the_weighted_difference_of_prediction_and_target():
    run, batch = lookup_run(SelfAdaptiveTraining(0.0, momentum=0.7), LOGITS)
    p = LOGITS.softmax(1)
    target = 0.7 * torch.eye(3)[batch.target.single()] + 0.3 * p
    expected = certainty_weights(target)[:, None] * (p - target) / 9
    assert_close(gradient(run, batch), expected, atol=1e-6, rtol=0)


def test_without_weights_all_rows_count_alike():
    run, batch = lookup_run(SelfAdaptiveTraining(0.0, momentum=0.7, weighted=False), LOGITS)
    p = LOGITS.softmax(1)
    assert_close(gradient(run, batch), (0.7 * p - 0.7 * torch.eye(3)[batch.target.single()]) / 9, atol=1e-6, rtol=0)


def test_momentum_zero_aims_at_the_prediction_itself():
    run, batch = lookup_run(SelfAdaptiveTraining(0.0, momentum=0.0), LOGITS)
    assert float(gradient(run, batch).abs().max()) < 1e-6


def test_weights_have_mean_one_and_no_scale():
    targets = LOGITS.softmax(1)
    weights = certainty_weights(targets)
    assert_close(weights.mean(), torch.tensor(1.0), atol=1e-6, rtol=0)
    assert_close(weights * targets.amax(1).mean(), targets.amax(1))
    assert_close(certainty_weights(5 * targets), weights)
    assert bool(((targets.amax(1) >= 1 / 3) & (targets.amax(1) <= 1)).all())


def test_the_reverse_term_has_its_closed_form_and_gradient():
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    logits = torch.tensor([[0.0, 0.0, 0.0], [800.0, 0.0, 0.0], [1.0, -2.0, 0.5]], requires_grad=True)
    log_t = targets.clamp_min(1e-4).log()
    found = reverse_cross_entropy(logits, targets)
    assert_close(found[0], torch.tensor(2 / 3 * math.log(1e4)))
    assert_close(found[1], torch.tensor(math.log(2.0)))
    p = logits.detach().softmax(1)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert_close(gradient, -p * (log_t - (p * log_t).sum(1, keepdim=True)), atol=1e-6, rtol=0)


def test_the_symmetric_variant_adds_the_reverse_term_under_the_same_weights():
    run, batch = lookup_run(SelfAdaptiveTraining(0.0, reverse=0.3), LOGITS)
    target = 0.9 * torch.eye(3)[batch.target.single()] + 0.1 * LOGITS.softmax(1)
    losses = -(target * LOGITS.log_softmax(1)).sum(1) + 0.3 * reverse_cross_entropy(LOGITS, target)
    assert_close(run.procedure.loss(run, batch), (certainty_weights(target) * losses).mean())


def test_any_loss_part_meets_the_targets():
    clip, data = LogitClip(0.1), Dataset.of(torch.arange(9)[:, None], torch.arange(9) % 3)
    procedure = SelfAdaptiveTraining(0.0)
    run = Run(Lookup(LOGITS), data, procedure=procedure, loss=clip, settings=Settings(epochs=1, batch_size=9))
    target = 0.9 * torch.eye(3)[data.labels] + 0.1 * LOGITS.softmax(1)
    expected = (certainty_weights(target) * clip.soft(LOGITS, target)).mean()
    assert_close(procedure.loss(run, Batch.of(data.floats(torch.arange(9)), data.labels)), expected)


def test_targets_may_start_from_smoothed_labels(images):
    procedure = SelfAdaptiveTraining(smoothing=0.3)
    run_of(images, procedure)
    assert_close(procedure.targets, label_table(images.labels, 3, 0.3))


class Twice:
    """A stepper that asks for the loss again at other weights before it steps."""

    def step(self, run, closure):
        closure()
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.add_(0.1)
        run.optimizer.zero_grad()
        loss = closure()
        run.backward(loss)
        run.optimizer.step()
        return loss.detach()


def test_a_stepper_that_asks_again_meets_the_same_targets(images):
    procedure = SelfAdaptiveTraining(0.0)
    run = run_of(images, procedure, stepper=Twice())
    rows = run.order(0)[:12]
    p = run.model(images.floats(rows)).detach().softmax(1)
    fit(run, max_steps=1)
    assert_close(procedure.targets[rows], 0.9 * label_table(images.labels, 3)[rows] + 0.1 * p)


@pytest.mark.parametrize("start", [0.0, 0.25, 0.375])
def test_resumes_bit_for_bit_with_its_table(images, assert_resumes, tmp_path, start):
    model, made = build_model("cnn_small:width=8", images), []

    def make() -> Run:
        made.append(SelfAdaptiveTraining(start, momentum=0.5, half=start == 0))
        return Run(copy.deepcopy(model), images, procedure=made[-1], settings=SGD)

    assert_resumes(make)
    whole, first, second = made
    assert torch.equal(whole.targets, second.targets)
    assert not torch.equal(whole.targets, first.targets)
    state = load_checkpoint(newest_checkpoint(tmp_path / "checkpoint"), "")
    assert torch.equal(state["parts"]["procedure"]["rows"], first.targets)
    assert state["parts"]["procedure"]["fitted"].tolist() == first.fitted.tolist()


def test_a_procedure_given_to_a_second_run_starts_anew(images):
    procedure = SelfAdaptiveTraining(0.0)
    fit(run_of(images, procedure))
    assert not torch.equal(procedure.targets, label_table(images.labels, 3))
    run_of(images, procedure)
    assert torch.equal(procedure.targets, label_table(images.labels, 3))


def test_logits_that_are_not_finite_never_reach_the_table(images):
    procedure = SelfAdaptiveTraining(0.0)
    run = run_of(images, procedure)
    with torch.no_grad():
        next(iter(run.model.parameters()))[0] = math.nan
    with pytest.raises(NonFinite, match="SelfAdaptiveTraining"):
        fit(run, max_steps=1)
    assert torch.equal(procedure.targets, label_table(images.labels, 3))


def test_a_start_after_memorisation_is_warned_of(images):
    settings = Settings(epochs=20, batch_size=12, lr=0.1, weight_decay=0.0)
    with pytest.warns(UserWarning, match=r"at start=0.9 the network fits 100.0% of the given labels .* Lower start"):
        fit(run_of(images, SelfAdaptiveTraining(0.9), settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(run_of(images, SelfAdaptiveTraining(0.05), settings))
        fit(run_of(images, SelfAdaptiveTraining(0.0), settings))


def test_mixed_labels_are_refused(images):
    with pytest.raises(Incompatible, match="SelfAdaptiveTraining needs 'hard_target'"):
        run_of(images, SelfAdaptiveTraining(), transforms=[MixUp()])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"start": 1.0}, "start"),
        ({"start": 25}, "start"),
        ({"momentum": 1.1}, "momentum"),
        ({"momentum": math.nan}, "momentum"),
        ({"reverse": -0.1}, "reverse"),
        ({"reverse": math.inf}, "reverse"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        SelfAdaptiveTraining(**arguments)
