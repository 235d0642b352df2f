"""Self-adaptive training without labels: its loss and limits, what labels reach, and that features do not collapse."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible, NonFinite
from weathered.core.fit import fit
from weathered.core.predict import eval_mode
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import LabelSmoothing
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.self_adaptive_self_supervised import (
    SelfAdaptiveSelfSupervised,
    direction_losses,
    random_directions,
)
from weathered.steppers.plain import Plain

SGD = Settings(epochs=2, batch_size=12, lr=0.05)
ROWS = torch.tensor([40, 3, 11, 26, 7])


def small(momentum: float = 0.7, average: float = 0.9, probe: float = 0.25) -> SelfAdaptiveSelfSupervised:
    return SelfAdaptiveSelfSupervised(momentum, average, hidden=32, size=8, probe=probe)


def run_of(images, procedure, settings: Settings = SGD, model="cnn_small:width=8", **parts) -> Run:
    return Run(build_model(model, images), images, procedure=procedure, settings=settings, **parts)


def batch_of(images, rows) -> Batch:
    return Batch.of(images.floats(rows), images.labels[rows]).replace(index=rows)


def body(run: Run) -> dict[str, torch.Tensor]:
    """Weights and buffers of all but the classifier."""
    state = {name: value for name, value in run.model.state_dict().items() if not name.startswith("head.")}
    return state | {
        f"{key}.{n}": v for key in ("projector", "predictor") for n, v in run.modules[key].state_dict().items()
    }


def test_losses_of_directions_have_their_closed_form_and_gradient():
    targets = torch.tensor([[0.0, 2.0], [3.0, 0.0], [-1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    prediction = torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.5, 0.0], [0.0, 0.0]], requires_grad=True)
    losses = direction_losses(prediction, targets)
    assert_close(losses, torch.tensor([0.0, 2.0, 4.0, 1.0]))
    losses[:3].sum().backward()
    assert targets.grad is None
    assert prediction.grad is not None
    # only a turn changes the loss, by -2 (t - cos v) / length for v the prediction's direction
    assert_close(prediction.grad, torch.tensor([[0.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_random_directions_have_length_one_and_no_side():
    found = random_directions(4000, 3, torch.Generator().manual_seed(0))
    assert_close(found.norm(dim=1), torch.ones(4000))
    assert_close(found.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    assert_close(found.T @ found / 4000, torch.eye(3) / 3, atol=0.03, rtol=0)


def test_a_step_by_hand_moves_targets_first_and_the_average_afterwards(images):
    procedure = small(momentum=0.7, average=0.9)
    run = run_of(images, procedure)
    batch, start = batch_of(images, ROWS), procedure.table.rows.clone()
    twin, average = copy.deepcopy(run.model), copy.deepcopy(run.modules["average"])
    projector, predictor = (copy.deepcopy(run.modules[name]) for name in ("projector", "predictor"))
    with torch.no_grad():
        seen = F.normalize(run.modules["average_projector"](pooled(average.train(), batch.x)), dim=1)
    target = 0.7 * start[ROWS] + 0.3 * seen
    features = pooled(twin.train(), batch.x)
    prediction = F.normalize(predictor(projector(features)), dim=1)
    distance = 2 - 2 * (prediction * F.normalize(target, dim=1)).sum(1)
    expected = distance.mean() + F.cross_entropy(twin.get_classifier()(features.detach()), batch.target.single())
    assert_close(procedure.loss(run, batch), expected)
    assert torch.equal(procedure.table.rows, start)

    before = copy.deepcopy(run.modules["average"])
    procedure.update(run, batch)
    procedure.after_step(run)
    assert_close(procedure.table.rows[ROWS], target, atol=1e-5, rtol=0)
    others = torch.ones(48, dtype=torch.bool)
    others[ROWS] = False
    assert torch.equal(procedure.table.rows[others], start[others])
    for p, old, new in zip(
        run.modules["average"].parameters(), before.parameters(), run.model.parameters(), strict=True
    ):
        assert_close(p, 0.9 * old + 0.1 * new)
        assert not p.requires_grad


def pooled(network, x: torch.Tensor) -> torch.Tensor:
    return network.forward_head(network.forward_features(x), pre_logits=True)


def test_momentum_of_one_keeps_the_noise_and_of_zero_takes_what_the_average_says(images):
    fixed, following = small(momentum=1.0), small(momentum=0.0)
    start = run_of(images, fixed).procedure.table.rows.clone()
    fit(run_of(images, fixed))
    assert torch.equal(fixed.table.rows, start)
    run = run_of(images, following)
    with torch.no_grad():
        network, projector = (copy.deepcopy(run.modules[name]).train() for name in ("average", "average_projector"))
        seen = F.normalize(projector(pooled(network, images.floats(ROWS))), dim=1)
    following.loss(run, batch_of(images, ROWS))
    following.table.commit()
    assert_close(following.table.rows[ROWS], seen)


def test_labels_reach_the_classifier_and_nothing_else(images):
    other = images.replace(labels=images.labels.roll(1))
    one, two = (fit(run_of(data, small())) for data in (images, other))
    for name, value in body(one).items():
        assert torch.equal(value, body(two)[name]), name
    assert torch.equal(one.procedure.table.rows, two.procedure.table.rows)
    assert not torch.equal(one.model.head.weight, two.model.head.weight)


def test_in_the_probe_the_classifier_alone_is_trained(images):
    procedure = small(probe=0.25)
    run = run_of(images, procedure)
    fit(run, max_steps=6)
    before, rows, head = copy.deepcopy(body(run)), procedure.table.rows.clone(), run.model.head.weight.detach().clone()
    average = copy.deepcopy(run.modules["average"].state_dict())
    fit(run)
    assert run.step == 8
    assert all(torch.equal(value, before[name]) for name, value in body(run).items())
    assert all(torch.equal(value, average[name]) for name, value in run.modules["average"].state_dict().items())
    assert torch.equal(procedure.table.rows, rows)
    assert not torch.equal(run.model.head.weight, head)


def test_a_probe_of_one_trains_a_classifier_on_the_features_as_they_were_drawn(images):
    run = run_of(images, small(probe=1.0))
    start = copy.deepcopy(body(run))
    with eval_mode(run.model), torch.no_grad():
        features = pooled(run.model, images.floats(ROWS))
    head = copy.deepcopy(run.model.head)
    expected = F.cross_entropy(head(features), images.labels[ROWS])
    assert_close(run.procedure.loss(run, batch_of(images, ROWS)), expected)
    fit(run)
    assert all(torch.equal(value, start[name]) for name, value in body(run).items())


def test_the_loss_part_trains_the_classifier(images):
    run = run_of(images, small(probe=1.0), loss=LabelSmoothing(0.3))
    with eval_mode(run.model), torch.no_grad():
        logits = run.model(images.floats(ROWS))
    assert_close(
        run.procedure.loss(run, batch_of(images, ROWS)),
        F.cross_entropy(logits, images.labels[ROWS], label_smoothing=0.3),
    )


def spread(run: Run, data: Dataset) -> tuple[float, float]:
    """How much differs between images: the variance of the predicted directions, in [0, 1], and of the features."""
    network, projector, predictor = run.model, run.modules["projector"], run.modules["predictor"]
    with torch.no_grad(), eval_mode(network), eval_mode(projector), eval_mode(predictor):
        features = pooled(network, data.floats(torch.arange(len(data))))
        directions = F.normalize(predictor(projector(features)), dim=1)
    return float(directions.var(0, correction=0).sum()), float(features.var(0, correction=0).sum())


def test_features_do_not_collapse_where_one_target_for_all_makes_predictions_do_so(small_digits):
    """The control has one target for all images in place of one for each, which is what collapse looks like."""
    settings = Settings(epochs=10, batch_size=50, lr=0.1)
    run = run_of(small_digits, small(average=0.9), settings, "mlp:width=64")
    drawn = spread(run, small_digits)
    found = spread(fit(run), small_digits)
    control = small(momentum=1.0)
    collapsed = run_of(small_digits, control, settings, "mlp:width=64")
    control.table.rows.copy_(control.table.rows[:1].expand(200, -1).clone())
    without = spread(fit(collapsed), small_digits)
    assert found[0] > 5 * without[0]
    assert found[1] > max(drawn[1], without[1])


def test_resumes_bit_for_bit_with_its_table(images, assert_resumes):
    model, made = build_model("cnn_small:width=8", images), []

    def make() -> Run:
        made.append(small(probe=0.625))
        return Run(copy.deepcopy(model), images, procedure=made[-1], settings=SGD)

    assert_resumes(make)
    whole, first, second = made
    assert torch.equal(whole.table.rows, second.table.rows)
    assert not torch.equal(whole.table.rows, first.table.rows)


def test_targets_start_alike_for_a_seed_and_otherwise_for_another(images):
    rows = [run_of(images, small(), Settings(seed=seed)).procedure.table.rows for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_weights_that_are_not_finite_stop_the_run_before_the_table(images):
    procedure = small()
    run = run_of(images, procedure)
    start = procedure.table.rows.clone()
    with torch.no_grad():
        next(iter(run.modules["average"].parameters()))[0] = math.nan
    with pytest.raises(NonFinite, match="SelfAdaptiveSelfSupervised"):
        fit(run, max_steps=1)
    assert torch.equal(procedure.table.rows, start)


def test_what_would_break_it_is_refused(images):
    with pytest.raises(Incompatible, match="SelfAdaptiveSelfSupervised needs 'hard_target'"):
        run_of(images, small(), transforms=[MixUp()])
    with pytest.raises(Incompatible, match="slot 'stepper', which SelfAdaptiveSelfSupervised never calls"):
        run_of(images, small(), stepper=Plain())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"momentum": 1.1}, "momentum"),
        ({"average": -0.1}, "average"),
        ({"average": math.nan}, "average"),
        ({"hidden": 0}, "hidden"),
        ({"size": 0}, "size"),
        ({"probe": 1.5}, "probe"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        SelfAdaptiveSelfSupervised(**arguments)
