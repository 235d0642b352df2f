"""Selective classification: the loss and its limits, the order in which inputs are given up, and the network."""

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
from weathered.core.predict import eval_mode
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target_table import label_table
from weathered.data.dataset import Dataset
from weathered.loaded_run import load_run
from weathered.losses.cross_entropy import CrossEntropy
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.selective_classification import (
    AbstainingNetwork,
    SelectiveClassification,
    abstention_losses,
    rejection_score,
    risk_at,
    risk_coverage,
)
from weathered.recipe import DataOptions, Recipe
from weathered.training import train

SGD = Settings(epochs=2, batch_size=12, lr=0.05, weight_decay=0.0, schedule="constant")


def logits(rows: int = 7, outputs: int = 5, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_of(images, procedure=None, **parts) -> Run:
    model = build_model("mlp:width=16", images)
    return Run(model, images, procedure=procedure or SelectiveClassification(0.0), settings=SGD, **parts)


LABELS = torch.arange(7) % 4


def test_full_trust_is_cross_entropy_over_classes_and_abstention():
    z = logits()
    assert_close(abstention_losses(z, LABELS, torch.ones(7)), F.cross_entropy(z, LABELS, reduction="none"))


def test_no_trust_asks_for_abstention_alone():
    z = logits()
    none = torch.zeros(7)
    assert_close(abstention_losses(z, LABELS, none), F.cross_entropy(z, torch.full((7,), 4), reduction="none"))
    sure = torch.cat([torch.full((7, 4), -60.0), torch.zeros(7, 1)], 1)
    assert float(abstention_losses(sure, LABELS, none).max()) < 1e-12
    assert_close(rejection_score(sure), torch.ones(7))


def test_gradient_is_prediction_minus_target_and_none_reaches_trust():
    z = logits().requires_grad_()
    trust = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    loss = abstention_losses(z, LABELS, trust).sum()
    target = torch.zeros(7, 5, dtype=torch.float64)
    target[torch.arange(7), LABELS] = trust.detach()
    target[:, 4] = 1 - trust.detach()
    (gradient,) = torch.autograd.grad(loss, z)
    assert_close(gradient, z.detach().softmax(1) - target, atol=1e-12, rtol=0)
    assert not abstention_losses(z.detach(), LABELS, trust).requires_grad


@given(st.integers(1, 50), st.integers(0, 1000))
def test_risk_is_that_of_the_lowest_scores(size, seed):
    rng = torch.Generator().manual_seed(seed)
    scores, wrong = torch.rand(size, generator=rng), torch.rand(size, generator=rng) < 0.3
    coverage, risk = risk_coverage(scores, wrong)
    assert_close(coverage, torch.arange(1, size + 1).double() / size)
    assert float(risk[-1]) == pytest.approx(float(wrong.double().mean()))
    for k in {1, (size + 1) // 2, size}:
        threshold = scores.sort().values[k - 1]
        assert float(risk[k - 1]) == pytest.approx(float(wrong[scores <= threshold].double().mean()))
    perfect = risk_coverage(wrong.float(), wrong)[1]
    assert bool((perfect <= risk + 1e-12).all())


@pytest.mark.parametrize(("coverage", "kept"), [(1.0, 10), (0.8, 8), (0.74, 7), (0.76, 8), (0.1, 1)])
def test_kept_count_is_the_rounded_share(coverage, kept):
    scores, wrong = torch.arange(10.0), torch.arange(10) >= 5
    assert risk_at(scores, wrong, coverage) == pytest.approx(max(0, kept - 5) / kept)


def test_ties_are_kept_in_the_order_given():
    assert risk_coverage(torch.zeros(3), torch.tensor([True, False, False]))[1].tolist() == [1.0, 0.5, 1 / 3]


def test_what_cannot_be_scored_is_refused():
    for coverage in (0.0, 1.1, 0.01, math.nan):
        with pytest.raises(ValueError, match="coverage must be"):
            risk_at(torch.arange(10.0), torch.zeros(10).bool(), coverage)
    with pytest.raises(ValueError, match="position 1 is NaN"):
        risk_coverage(torch.tensor([0.0, math.nan]), torch.zeros(2).bool())
    with pytest.raises(ValueError, match="one score and one decision"):
        risk_coverage(torch.zeros(3), torch.zeros(2).bool())
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\], got 4 at position 2"):
        abstention_losses(logits(3), torch.tensor([0, 1, 4]), torch.ones(3))
    with pytest.raises(ValueError, match="expected logits"):
        abstention_losses(logits(3), torch.tensor([0, 1]), torch.ones(2))


def test_before_start_it_is_plain_training_and_the_new_unit_stays(images):
    run = run_of(images, SelectiveClassification(0.99))
    unit = run.modules["abstain"].weight.clone()
    fit(run)
    plain = fit(Run(build_model("mlp:width=16", images), images, settings=SGD))
    for p, q in zip(plain.model.parameters(), run.model.parameters(), strict=True):
        assert_close(p, q, atol=1e-6, rtol=0)
    assert torch.equal(run.modules["abstain"].weight, unit)


def test_a_step_by_hand_leaves_abstention_out_of_the_history(images):
    procedure = SelectiveClassification(0.0, momentum=0.7)
    run, rows = run_of(images, procedure), torch.tensor([40, 3, 11, 26, 7])
    x, labels = images.floats(rows), images.labels[rows]
    features = run.model.forward_head(run.model.forward_features(x), pre_logits=True)
    z = torch.cat([run.model.head(features), run.modules["abstain"](features)], 1)
    history = 0.7 * label_table(images.labels, 3)[rows] + 0.3 * z[:, :3].detach().softmax(1)
    expected = abstention_losses(z, labels, history[torch.arange(5), labels]).mean()
    assert_close(procedure.loss(run, Batch.of(x, labels).replace(index=rows)), expected)
    assert torch.equal(procedure.table.rows, label_table(images.labels, 3))
    procedure.after_step(run)
    assert_close(procedure.table.rows[rows], history)


def test_the_predictor_is_the_network_with_a_rejection_score(images):
    run = run_of(images)
    x, network = images.floats(torch.arange(9)), run.procedure.predictor(run)
    assert isinstance(network, AbstainingNetwork)
    with torch.no_grad(), eval_mode(network):
        assert torch.equal(network(x), run.model(x))
        everything = network.all_logits(x)
        assert everything.shape == (9, 4)
        assert_close(everything[:, :3], network(x))
        assert torch.equal(network.rejection_score(x), rejection_score(everything))
    assert run.predict(images).shape == (48, 3)


def test_a_finished_run_can_be_read_back_and_abstains(tmp_path):
    recipe = Recipe(
        data=DataOptions(train="digits", limit=200),
        model="mlp:width=8",
        use=("selective:start=0.5",),
        settings=Settings(epochs=4, batch_size=30),
    )
    kept: list[Run] = []
    loaded = load_run(train(recipe, tmp_path, observer=kept.append).path)
    trained, read = kept[0].procedure.predictor(kept[0]), loaded.model
    x = loaded.splits.test.floats(torch.arange(20))
    assert isinstance(trained, AbstainingNetwork)
    assert isinstance(read, AbstainingNetwork)
    with torch.no_grad(), eval_mode(read), eval_mode(trained):
        assert torch.equal(read.rejection_score(x), trained.rejection_score(x))
        assert_close(loaded.predict(loaded.splits.test)[:20], read(x))


def test_an_input_of_two_labels_is_half_left_out_and_one_of_a_single_label_is_kept():
    """Where half of equal inputs carry another label, trust goes to 1/2, and so does abstention."""
    rows = torch.eye(2)[torch.arange(64) % 2]
    labels = torch.where(torch.arange(64) % 2 == 0, 0, 1 + torch.arange(64) // 2 % 2)
    data = Dataset.of(rows, labels)
    settings = Settings(epochs=400, batch_size=64, lr=0.2, weight_decay=0.0)
    run = fit(Run(build_model("mlp:width=16", data), data, procedure=SelectiveClassification(0.0), settings=settings))
    network = run.procedure.predictor(run)
    assert isinstance(network, AbstainingNetwork)
    with torch.no_grad():
        shares = network.all_logits(torch.eye(2)).softmax(1)
    assert_close(shares[0], torch.tensor([1.0, 0.0, 0.0, 0.0]), atol=0.02, rtol=0)
    assert_close(shares[1], torch.tensor([0.0, 0.25, 0.25, 0.5]), atol=0.02, rtol=0)


def test_resumes_bit_for_bit_with_its_history(images, assert_resumes):
    model, made = build_model("cnn_small:width=8", images), []

    def make() -> Run:
        made.append(SelectiveClassification(0.125))
        return Run(copy.deepcopy(model), images, procedure=made[-1], settings=SGD)

    assert_resumes(make)
    whole, first, second = (procedure.table.rows for procedure in made)
    assert torch.equal(whole, second)
    assert not torch.equal(whole, first)


def test_logits_that_are_not_finite_never_reach_the_history(images):
    run = run_of(images)
    with torch.no_grad():
        run.modules["abstain"].weight[0] = math.nan
    with pytest.raises(NonFinite, match="SelectiveClassification"):
        fit(run, max_steps=1)
    assert torch.equal(run.procedure.table.rows, label_table(images.labels, 3))


@pytest.mark.parametrize(
    ("part", "reason"), [({"transforms": [MixUp()]}, "hard_target"), ({"loss": CrossEntropy()}, "loss")]
)
def test_mixed_labels_and_losses_are_refused(images, part, reason):
    with pytest.raises(Incompatible, match=f"'{reason}'"):
        run_of(images, **part)


@pytest.mark.parametrize("arguments", [{"start": 1.0}, {"start": 150}, {"momentum": -0.1}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} must be in"):
        SelectiveClassification(**arguments)
