"""The slots no method fills yet: a term adds to the loss what it says, a sampler decides which rows an epoch has."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import Incompatible, Unused
from weathered.core.facts import Traits
from weathered.core.fit import fit
from weathered.core.procedure import Procedure
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.jocor import JoCoR

SETTINGS = Settings(epochs=2, batch_size=40, lr=0.1, momentum=0.9, weight_decay=1e-3, checkpoint_seconds=0)


class FeatureNorm(Part):
    """Half the squared norm of the features, times `weight`; a value for each sample, or their mean."""

    traits = Traits(needs={"features": "takes their norm"})

    def __init__(self, weight: float, mean: bool = False):
        self.weight, self.mean, self.batches = weight, mean, 0

    def __call__(self, run, batch, output):
        self.batches += 1
        losses = 0.5 * self.weight * output.features.square().sum(1)
        return losses.mean() if self.mean else losses

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


def network(data: Dataset) -> nn.Module:
    return build_model("mlp:width=16", data, seed=5)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(data: Dataset, weight: float) -> nn.Module:
    """The same training as an ordinary loop, the term written into it."""
    model, run = network(data), Run(network(data), data, settings=SETTINGS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(run.total_steps):
        rows = run.order(step // 5)[step % 5 * 40 :][:40]
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS.learning_rate(step / run.total_steps)
        features = model.forward_features(data.floats(rows))  # pyright: ignore[reportCallIssue]
        loss = F.cross_entropy(model.get_classifier()(features), data.labels[rows])  # pyright: ignore[reportCallIssue]
        loss = loss + weight * 0.5 * features.square().sum() / 40
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("mean", [False, True])
def test_a_run_with_a_term_is_the_loop_with_the_term_in_it(small_digits: Dataset, mean):
    terms = [FeatureNorm(0.02, mean), FeatureNorm(0.01)]
    run = fit(Run(network(small_digits), small_digits, terms=terms, settings=SETTINGS))
    assert_close(weights(run.model), weights(by_hand(small_digits, 0.03)), atol=1e-5, rtol=1e-4)
    assert (weights(run.model) - weights(by_hand(small_digits, 0.0))).abs().max() > 1e-3
    assert [term.batches for term in terms] == [10, 10]


def test_the_gradient_of_a_term_is_added_with_its_weight(small_digits: Dataset):
    def gradient(*terms: Part) -> torch.Tensor:
        run = Run(network(small_digits), small_digits, terms=terms, settings=SETTINGS)
        run.begin_step()
        rows = torch.arange(40)
        batch = run.prepare(small_digits.inputs.fetch(rows), small_digits.labels[rows], rows)
        found = torch.autograd.grad(run.procedure.loss(run, batch), run.parameters)
        return torch.cat([g.flatten() for g in found])

    model = network(small_digits)
    features = model.forward_features(small_digits.floats(torch.arange(40)))  # pyright: ignore[reportCallIssue]
    alone = torch.autograd.grad(
        0.5 * features.square().sum(1).mean(), list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    expected = torch.cat([g.flatten() for g in alone])
    assert expected.abs().max() > 0.1
    for weight in (0.5, 2.0):
        assert_close(gradient(FeatureNorm(weight)) - gradient(), weight * expected, atol=1e-5, rtol=1e-4)


def test_a_term_works_beside_mixing_and_its_state_resumes(small_digits: Dataset, tmp_path):
    def make() -> Run:
        return Run(
            network(small_digits), small_digits, terms=[FeatureNorm(0.02)], transforms=[MixUp()], settings=SETTINGS
        )

    whole = fit(make())
    fit(make(), folder=tmp_path, max_steps=4)
    resumed = fit(make(), folder=tmp_path)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.terms[0].batches == whole.terms[0].batches == 10  # pyright: ignore[reportAttributeAccessIssue]


def test_a_term_that_cannot_work_is_refused(small_digits: Dataset):
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(Incompatible, match=r"FeatureNorm needs 'features' \(takes their norm\), but data and model do"):
        Run(bare, small_digits, terms=[FeatureNorm(0.1)])
    with pytest.raises(Incompatible, match="FeatureNorm fills the slot 'term', which JoCoR never calls"):
        Run(network(small_digits), small_digits, procedure=JoCoR(), terms=[FeatureNorm(0.1)])


class Balanced(Part):
    """Every class equally often; from the second epoch on class 0 never."""

    def __init__(self):
        self.seen: list[float] = []

    def weights(self, labels, progress):
        self.seen.append(progress)
        found = 1 / labels.bincount()[labels]
        return found.masked_fill(labels == 0, 0) if progress >= 0.5 else found


def thinned(digits: Dataset) -> Dataset:
    """300 digits: 3 of class 1, 20 of class 2, the rest of the others."""
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    labels = digits.labels[order]
    position = torch.zeros(10, len(order), dtype=torch.long).scatter_(0, labels[None], 1).cumsum(1)
    rank = position.gather(0, labels[None])[0]
    limit = torch.full((10,), 40)
    limit[1], limit[2] = 3, 20
    return digits.select(order[rank <= limit[labels]])


def test_a_sampler_decides_which_rows_an_epoch_has(digits: Dataset):
    data, sampler = thinned(digits), Balanced()
    run = Run(build_model("mlp:width=16", data), data, sampler=sampler, settings=Settings(epochs=4, batch_size=50))
    shares = torch.stack([data.labels[run.order(0)].bincount(minlength=10).double() / len(data)])
    assert data.class_counts[1] == 3
    assert_close(shares[0], torch.full((10,), 0.1).double(), atol=0.06, rtol=0)
    assert (data.labels[run.order(3)] != 0).all()
    assert sampler.seen == [0, 0.75]
    assert torch.equal(run.order(1), run.order(1))
    assert not torch.equal(run.order(0), run.order(1))


def test_a_run_sees_what_its_sampler_draws_and_resumes_inside_an_epoch(digits: Dataset, tmp_path):
    data = thinned(digits)
    seen: list[int] = []

    class Recording(Procedure):
        def loss(self, run, batch):
            seen.extend(batch.index.tolist())
            return super().loss(run, batch)

    def make() -> Run:
        settings = Settings(epochs=2, batch_size=50, checkpoint_seconds=0)
        model = build_model("mlp:width=16", data)
        return Run(model, data, sampler=Balanced(), procedure=Recording(), settings=settings)

    whole = make()
    expected = [row for epoch in range(2) for row in whole.order(epoch)[: whole.steps_per_epoch * 50].tolist()]
    fit(whole)
    assert seen == expected
    seen.clear()
    fit(make(), folder=tmp_path, max_steps=3)
    resumed = fit(make(), folder=tmp_path)
    assert seen == expected
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_a_sampler_is_not_taken_for_used_by_being_there(small_digits: Dataset):
    run = Run(network(small_digits), small_digits, sampler=Balanced())
    with pytest.raises(Unused, match="Balanced was given as 'sampler'"):
        run.check_used()
    run.order(0)
    run.check_used()
