"""Co-teaching: each network learns from the other's small losses, and nothing else passes between them."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible, NonFinite
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.logitclip import LogitClip
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.base import keep_rate, smallest
from weathered.procedures.co_teaching import CoTeaching, exchanged_rows

ADAM = Settings(epochs=2, batch_size=12, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def batch_of(images, size: int = 12) -> Batch:
    return Batch.of(images.floats(torch.arange(size)), images.labels[:size])


def run_of(images, procedure: Procedure, **parts) -> Run:
    return Run(build_model("mlp:width=16", images), images, procedure=procedure, settings=ADAM, **parts)


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_each_network_gets_the_small_losses_of_the_other(rows, rate, seed):
    first, second = torch.rand(2, rows, generator=torch.Generator().manual_seed(seed))
    for_first, for_second = exchanged_rows(first, second, rate)
    count = max(math.floor(rate * rows + 1e-6), 1)
    assert int(for_first.sum()) == int(for_second.sum()) == count
    for kept, losses in ((for_first, second), (for_second, first)):
        assert kept.all() or losses[kept].max() <= losses[~kept].min()
    swapped = exchanged_rows(second, first, rate)
    assert torch.equal(swapped[0], for_second)
    assert torch.equal(swapped[1], for_first)


def test_an_example_by_hand():
    for_first, for_second = exchanged_rows(torch.tensor([0.1, 2.0, 0.3, 4.0]), torch.tensor([9.0, 0.2, 8.0, 0.1]), 0.5)
    assert for_first.tolist() == [False, True, False, True]
    assert for_second.tolist() == [True, False, True, False]


def test_losses_that_cannot_be_ranked_are_refused():
    with pytest.raises(ValueError, match="one loss per sample"):
        exchanged_rows(torch.zeros(3), torch.zeros(4), 0.5)
    with pytest.raises(ValueError, match="position 1"):
        exchanged_rows(torch.zeros(3), torch.tensor([0.0, math.nan, 1.0]), 0.5)


def test_loss_of_a_batch_and_whom_its_gradients_reach(images):
    run = run_of(images, CoTeaching(0.5, ramp=0.0))
    batch, peer = batch_of(images), run.modules["peer"]
    labels = images.labels[:12]
    one = F.cross_entropy(run.model(batch.x), labels, reduction="none")
    other = F.cross_entropy(peer(batch.x), labels, reduction="none")
    expected = one[smallest(other, 0.5)].mean() + other[smallest(one, 0.5)].mean()
    found = run.procedure.loss(run, batch)
    assert_close(found, expected)
    assert not torch.equal(smallest(one, 0.5), smallest(other, 0.5))
    parameters = list(run.model.parameters())
    ours = torch.autograd.grad(found, parameters)
    alone = torch.autograd.grad(one[smallest(other, 0.5)].mean(), parameters)
    for p, q in zip(ours, alone, strict=True):
        assert_close(p, q, atol=1e-7, rtol=0)


def test_without_dropping_it_is_two_supervised_runs(images):
    model = build_model("mlp:width=16", images)
    run = Run(copy.deepcopy(model), images, procedure=CoTeaching(0.0), settings=ADAM)
    peer = copy.deepcopy(run.modules["peer"])
    fit(run)
    for start, trained in ((model, run.model), (peer, run.modules["peer"])):
        alone = fit(Run(start, images, settings=ADAM))
        for p, q in zip(alone.model.parameters(), trained.parameters(), strict=True):
            assert_close(p, q, atol=1e-6, rtol=0)


def test_one_optimizer_makes_the_steps_of_two(images):
    """The source has an optimizer for each network."""
    run = run_of(images, CoTeaching(0.5, ramp=0.5))
    nets = [copy.deepcopy(run.model).train(), copy.deepcopy(run.modules["peer"]).train()]
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in nets]
    for step in range(run.total_steps):
        rows = run.order(step // run.steps_per_epoch)[12 * (step % run.steps_per_epoch) :][:12]
        x, labels = images.floats(rows), images.labels[rows]
        losses = [F.cross_entropy(net(x), labels, reduction="none") for net in nets]
        rate = keep_rate(step / run.total_steps, 0.5, 0.5)
        kept = [smallest(losses[1], rate), smallest(losses[0], rate)]
        for optimizer, mine, rows_of_mine in zip(optimizers, losses, kept, strict=True):
            optimizer.zero_grad()
            mine[rows_of_mine].mean().backward()
            optimizer.step()
    fit(run)
    for net, trained in zip(nets, (run.model, run.modules["peer"]), strict=True):
        for p, q in zip(net.parameters(), trained.parameters(), strict=True):
            assert_close(p, q, atol=1e-6, rtol=0)


class Memory(Part):
    """Weights 1 + label; remembers how many losses it was shown."""

    def __init__(self):
        self.seen: list[int] = []

    def __call__(self, losses, target, progress):
        self.seen.append(len(losses))
        return 1.0 + target.single()


def test_reweight_sees_both_networks_as_one_batch(images):
    reweight = Memory()
    run = run_of(images, CoTeaching(0.5, ramp=0.0), reweight=reweight)
    batch, labels = batch_of(images), images.labels[:12]
    one, other = (F.cross_entropy(net(batch.x), labels, reduction="none") for net in (run.model, run.modules["peer"]))
    expected = ((1 + labels) * one)[smallest(other, 0.5)].mean() + ((1 + labels) * other)[smallest(one, 0.5)].mean()
    assert_close(run.procedure.loss(run, batch), expected)
    assert reweight.seen == [24]


def test_any_loss_part_ranks_and_trains(images):
    run = run_of(images, CoTeaching(0.0), loss=LogitClip(0.1))
    batch, clip = batch_of(images), LogitClip(0.1)
    expected = sum(clip(net(batch.x), images.labels[:12]).mean() for net in (run.model, run.modules["peer"]))
    assert_close(run.procedure.loss(run, batch), expected)


def test_resumes_bit_for_bit(images, assert_resumes):
    model = build_model("cnn_small:width=8", images)
    assert_resumes(lambda: Run(copy.deepcopy(model), images, procedure=CoTeaching(0.3, ramp=0.5), settings=ADAM))


def test_predictor_is_the_first_network_and_the_second_starts_elsewhere(images):
    run = run_of(images, CoTeaching())
    assert run.procedure.predictor(run) is run.model
    assert not torch.equal(run.model.state_dict()["head.weight"], run.modules["peer"].state_dict()["head.weight"])
    with pytest.raises(ValueError, match="both networks of CoTeaching start from the same weights"):
        Run(lambda seed: build_model("mlp", images, seed=1), images, procedure=CoTeaching(), settings=ADAM)


def test_losses_that_are_not_finite_stop_the_run(images):
    run = run_of(images, CoTeaching(0.5, ramp=0.0))
    batch = batch_of(images)
    batch.x[3] = math.nan
    with pytest.raises(NonFinite, match="CoTeaching"):
        run.procedure.loss(run, batch)


def test_mixed_labels_are_refused(images):
    with pytest.raises(Incompatible, match="CoTeaching needs 'hard_target'"):
        run_of(images, CoTeaching(), transforms=[MixUp()])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"forget_rate": 1.0}, "forget_rate"), ({"ramp": 1.5}, "ramp"), ({"exponent": 0.0}, "exponent")],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name} must be in"):
        CoTeaching(**arguments)
