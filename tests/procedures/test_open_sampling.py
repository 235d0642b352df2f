"""Open-sampling: the complementary distribution, exact balance, the weighted mean, and its limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.ldam import LDAM
from weathered.nn.build import build_model
from weathered.procedures.odnl import ODNL
from weathered.procedures.open_sampling import OpenSampling, complementary_distribution

LONG_TAIL = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
AUX = {"ood": Dataset.of(torch.arange(256).repeat(30)[: 40 * 64].view(40, 1, 8, 8).to(torch.uint8), torch.zeros(40))}
COUNTS = st.lists(st.integers(1, 5000), min_size=2, max_size=12).map(torch.tensor)


def make(images, procedure, aux=AUX, **changes):
    settings = Settings(epochs=2, batch_size=12, lr=0.05, weight_decay=0.0)
    model = changes.pop("model", None) or build_model("cnn_small:width=8,norm=none", images)
    return Run(model, images, procedure=procedure, aux=aux, settings=settings, **changes)


@given(COUNTS, st.floats(0, 10))
def test_it_is_a_distribution_of_opposite_order(counts, more):
    prior = counts / counts.sum()
    gamma = complementary_distribution(counts, float((counts.double() / counts.sum()).max()) + more + 1e-9)
    assert abs(float(gamma.sum()) - 1) < 1e-12 * (1 + 1e6 * (more < 1e-6))
    assert (gamma >= 0).all()
    larger = prior[:, None] > prior[None]
    assert (gamma[:, None] <= gamma[None])[larger].all()


def test_limits_of_the_parameter():
    prior = LONG_TAIL.double() / LONG_TAIL.sum()
    gamma = complementary_distribution(LONG_TAIL, float(prior.max()))
    assert float(gamma[0]) == 0
    assert (gamma[1:] > 0).all()
    assert_close(complementary_distribution(LONG_TAIL, 1e9), torch.full((10,), 0.1).double(), atol=1e-8, rtol=0)
    assert_close(complementary_distribution(torch.full((4,), 7), 0.9), torch.full((4,), 0.25).double())


def test_the_example_and_exact_balance():
    gamma = complementary_distribution(LONG_TAIL)
    expected = [0.0013, 0.0539, 0.0854, 0.1043, 0.1156, 0.1224, 0.1265, 0.1289, 0.1304, 0.1313]
    assert_close(gamma, torch.tensor(expected).double(), atol=6e-5, rtol=0)
    prior, size = LONG_TAIL.double() / LONG_TAIL.sum(), float(LONG_TAIL.sum())
    extra = (10 * float(prior.max() + prior.min()) - 1) * size
    assert round(extra / size, 4) == 3.0706
    assert_close(
        (size * prior + extra * gamma) / (size + extra), torch.full((10,), 0.1, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert round(float(10 * gamma.square().sum()), 3) == 1.163


@pytest.mark.parametrize("weighted", [True, False])
def test_the_best_constant_prediction_is_the_squared_distribution_and_without_weights_the_distribution(weighted):
    gamma = complementary_distribution(LONG_TAIL)
    weights = 10 * gamma if weighted else torch.ones_like(gamma)
    assert_close(weights.mean(), torch.tensor(1.0).double())
    z = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], lr=1, max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def expected_loss():
        optimizer.zero_grad()
        loss = -(gamma * weights * z.log_softmax(0)).sum() / (gamma * weights).sum()
        loss.backward()
        return loss

    optimizer.step(expected_loss)
    best = gamma.square() if weighted else gamma
    assert_close(z.detach().softmax(0), best / best.sum(), atol=1e-5, rtol=0)


def test_labels_follow_the_distribution_and_change_with_the_step(images):
    procedure = OpenSampling(torch.tensor([60, 30, 10]))
    run = make(images, procedure)
    run.begin_step()
    labels = procedure.draw_labels(run, 100_000)
    expected = 100_000 * procedure.distribution
    # the 99.9 % point of chi-square with 2 degrees of freedom
    assert float(((labels.bincount(minlength=3) - expected) ** 2 / expected).sum()) < 13.8
    run.step = 1
    run.begin_step()
    assert not torch.equal(procedure.draw_labels(run, 100_000), labels)


def test_the_term_is_torchs_weighted_mean(images):
    procedure = OpenSampling(torch.tensor([60, 30, 10]), eta=0.7, aux_batch=24)
    run, rows = make(images, procedure), torch.arange(12)
    batch = Batch(images.floats(rows), Target.hard(images.labels[rows]), rows)
    run.begin_step()
    found = procedure.loss(run, batch)
    run.begin_step()
    labels = procedure.draw_labels(run, 24)
    weights = (3 * procedure.distribution).float()
    strange = F.cross_entropy(run.model(run.aux("ood", 24)), labels, weight=weights)
    assert_close(found, F.cross_entropy(run.model(batch.x), batch.target.single()) + 0.7 * strange)


def test_balanced_classes_give_uniform_labels_and_no_weights():
    procedure = OpenSampling(torch.full((5,), 20))
    assert_close(procedure.distribution, torch.full((5,), 0.2).double())
    assert_close(5 * procedure.distribution, torch.ones(5).double())


def test_with_balanced_classes_the_term_is_that_of_odnl(images):
    balanced, uniform = OpenSampling(torch.full((3,), 16), aux_batch=24), ODNL(1.0, 24)
    run = make(images, balanced)
    run.begin_step()
    logits = run.model(run.aux("ood", 24))
    labels = balanced.draw_labels(run, 24)
    assert_close(balanced.auxiliary_loss(run, logits, labels), uniform.auxiliary_loss(run, logits, labels))
    assert not torch.allclose(
        OpenSampling(torch.tensor([60, 30, 10])).auxiliary_loss(run, logits, labels),
        uniform.auxiliary_loss(run, logits, labels),
    )
    for procedure in (balanced, uniform):
        drawn = procedure.draw_labels(run, 100_000).bincount(minlength=3)
        # the 99.9 % point of chi-square with 2 degrees of freedom
        assert float(((drawn - 100_000 / 3) ** 2 / (100_000 / 3)).sum()) < 13.8


def test_eta_zero_is_plain_training(images):
    plain, off = (fit(make(images, p), max_steps=3) for p in (None, OpenSampling(images.class_counts, eta=0.0)))
    for one, other in zip(plain.model.parameters(), off.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_works_with_a_long_tail_loss(images):
    model = build_model("cnn_small:width=8", images, head="cosine")
    counts = images.class_counts
    assert fit(make(images, OpenSampling(counts, aux_batch=24), loss=LDAM(counts), model=model), max_steps=2).step == 2


def test_resumes_bit_for_bit(images, assert_resumes):
    assert_resumes(lambda: make(images, OpenSampling(images.class_counts, aux_batch=24)))


@pytest.mark.parametrize("counts", [[5], [5, 0], [5, -1]])
def test_bad_counts_are_refused(counts):
    with pytest.raises(ValueError, match="at least 2 classes with samples each"):
        complementary_distribution(torch.tensor(counts))


@pytest.mark.parametrize("complement", [0.5, -1.0, math.nan, math.inf])
def test_a_parameter_below_the_largest_share_is_refused(complement):
    with pytest.raises(ValueError, match=r"at least the share 0\.6 of the largest class"):
        OpenSampling(torch.tensor([60, 30, 10]), complement=complement)


def test_other_bad_input_is_refused(images):
    with pytest.raises(ValueError, match="eta must be >= 0"):
        OpenSampling(torch.tensor([3, 4]), eta=-0.1)
    with pytest.raises(Incompatible, match="--aux ood=patches"):
        make(images, OpenSampling(images.class_counts), aux=None)
