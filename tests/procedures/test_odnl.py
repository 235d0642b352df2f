"""ODNL: fresh uniform labels, outlier exposure in expectation, and plain training at eta = 0."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from scaled import Scaled
from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.core.target import Target
from weathered.data.dataset import Dataset
from weathered.losses.logitclip import LogitClip
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.odnl import ODNL, draw_uniform_labels

AUX = {"ood": Dataset.of(torch.arange(256).repeat(30)[: 40 * 64].view(40, 1, 8, 8).to(torch.uint8), torch.zeros(40))}


def make(images, procedure=None, norm="none", aux=AUX, **changes):
    settings = changes.pop("settings", Settings(epochs=2, batch_size=12, lr=0.05, weight_decay=0.0))
    model = build_model(f"cnn_small:width=8,norm={norm}", images)
    return Run(model, images, procedure=procedure, aux=aux, settings=settings, **changes)


def batch_of(images):
    rows = torch.arange(12)
    return Batch(images.floats(rows), Target.hard(images.labels[rows]), rows)


def logit_gradients(run, batch):
    """The gradient of the procedure's loss in all logits that it computes, in their order."""
    seen = []

    def keep(module, inputs, logits):
        logits.retain_grad()
        seen.append(logits)

    run.begin_step()
    with run.model.register_forward_hook(keep):
        run.procedure.loss(run, batch).backward()
    return torch.cat([logits.detach() for logits in seen]), torch.cat([logits.grad for logits in seen])


class OtherLabels(ODNL):
    """ODNL whose labels come from another generator."""

    def draw_labels(self, run, size):
        return draw_uniform_labels(size, run.train.num_classes, run.generator("other labels", shared=True))


@pytest.mark.parametrize("separate", [False, True])
def test_the_loss_is_the_sum_of_both_means(images, separate):
    run, batch = make(images, ODNL(2.5, 20, separate)), batch_of(images)
    run.begin_step()
    found = run.procedure.loss(run, batch)
    run.begin_step()
    labels = draw_uniform_labels(20, 3, run.generator("odnl labels", shared=True))
    strange = run.model(run.aux("ood", 20))
    expected = F.cross_entropy(run.model(batch.x), batch.target.single()) + 2.5 * F.cross_entropy(strange, labels)
    assert_close(found, expected)


def test_eta_zero_is_plain_training(images):
    plain, off = (fit(make(images, procedure), max_steps=3) for procedure in (None, ODNL(0.0)))
    for one, other in zip(plain.model.parameters(), off.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_with_a_scale_of_its_own_is_that_of_both_kinds_of_images(images):
    run, batch = make(images, ODNL(2.5, 20), loss=Scaled()), batch_of(images)
    run.begin_step()
    found = run.procedure.loss(run, batch)
    run.begin_step()
    strange = run.procedure.draw_labels(run, 20)
    own = F.cross_entropy(7 * run.model(batch.x), batch.target.single())
    assert_close(found, own + 2.5 * F.cross_entropy(7 * run.model(run.aux("ood", 20)), strange))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 3.0])
def test_gradient_of_each_row_is_that_of_its_own_mean(images, eta, separate):
    """Rows of the training batch get that of plain cross entropy, whatever eta; auxiliary ones eta times theirs."""
    procedure, batch = ODNL(eta, 20, separate), batch_of(images)
    run = make(images, procedure)
    logits, found = logit_gradients(run, batch)
    assert len(found) == (12 if eta == 0 else 32)
    run.begin_step()
    strange = procedure.draw_labels(run, 20)[: len(found) - 12]
    expected = logits.softmax(1) - F.one_hot(torch.cat([batch.target.single(), strange]), 3)
    expected[:12] /= 12
    expected[12:] *= eta / 20
    assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_averaged_over_all_labels_the_term_is_outlier_exposure(images):
    procedure = ODNL()
    run = make(images, procedure)
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = [procedure.auxiliary_loss(run, logits, torch.full((7,), label)) for label in range(5)]
    assert_close(torch.stack(constant).mean(), -logits.log_softmax(1).mean(), atol=1e-12, rtol=0)


def test_gradient_noise_at_uniform_output_has_its_closed_form(images):
    procedure, size, classes = ODNL(), 200_000, 3
    run = make(images, procedure)
    run.begin_step()
    logits = torch.zeros(size, classes, requires_grad=True)
    loss = procedure.auxiliary_loss(run, logits, procedure.draw_labels(run, size))
    assert_close(loss.detach(), torch.tensor(math.log(classes)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(size * gradient.mean(0), torch.zeros(classes), atol=5e-3, rtol=0)
    expected = (torch.eye(classes) - 1 / classes) / classes
    assert_close((size * gradient).T.cov(correction=0), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 5.0])
def test_the_recorded_loss_is_that_of_the_training_rows(images, eta):
    seen, means = [], []

    def loss(logits, labels):
        losses = F.cross_entropy(logits, labels, reduction="none")
        seen.append(losses.detach())
        return losses

    fit(make(images, ODNL(eta, 20), loss=loss), after_epoch=lambda run, mean: means.append(mean))
    assert {len(losses) for losses in seen} == {12}
    assert_close(torch.tensor(means), torch.stack(seen).view(2, 4 * 12).mean(1), rtol=1e-5, atol=1e-6)


def test_labels_are_uniform_and_drawn_anew():
    rng = torch.Generator().manual_seed(1)
    first, second = (draw_uniform_labels(100_000, 10, rng) for _ in range(2))
    counts = first.bincount(minlength=10)
    assert len(counts) == 10
    # the 99.9 % point of chi-square with 9 degrees of freedom
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.9
    assert abs(float((first == second).double().mean()) - 0.1) < 0.005


def test_steps_draw_other_labels_for_the_same_images_and_repeat_themselves(images):
    procedure, drawn = ODNL(), []
    run = make(images, procedure)
    for step in (0, 1, 0):
        run.step = step
        run.begin_step()
        drawn.append(procedure.draw_labels(run, 50))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_other_labels_move_no_image(images):
    seen, losses = [], []
    for procedure in (ODNL(), OtherLabels()):
        run = make(images, procedure)
        run.begin_step()
        with run.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
            losses.append(float(procedure.loss(run, batch_of(images)).detach()))
        assert torch.equal(run.order(0), make(images).order(0))
    assert torch.equal(seen[0], seen[1])
    assert losses[0] != losses[1]


DISTINCT = Dataset.of(
    torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8), torch.zeros(40)
)
KEPT = draw_uniform_labels(40, 3, torch.Generator().manual_seed(6))


@pytest.mark.parametrize("fresh", [True, False])
def test_labels_that_change_at_every_look_cannot_be_learnt_by_heart(images, fresh):
    """The auxiliary term stays near log C where labels that stay fall far below it."""
    run = make(images, ODNL(5.0, 40), aux={"ood": DISTINCT}, settings=Settings(epochs=60, batch_size=12, lr=0.05))
    x = DISTINCT.floats(torch.arange(40))
    if fresh:
        fit(run)
    else:
        for _ in range(run.total_steps):
            run.optimizer.zero_grad()
            F.cross_entropy(run.model.train()(x), KEPT).backward()
            run.optimizer.step()
    with torch.no_grad():
        logits = run.model.eval()(x)
    loss, sure = float(F.cross_entropy(logits, KEPT)), float(logits.softmax(1).amax(1).mean())
    assert (loss > 0.85 * math.log(3)) == fresh, loss
    assert (sure < 0.6) == fresh, sure


def test_separate_passes_keep_batch_statistics_apart(images):
    """Those kept for test time are of training inputs alone, as if there were no others."""

    def statistics(procedure):
        run = make(images, procedure, norm="batch")
        fit(run, max_steps=1)
        return torch.cat([b.flatten().double() for _, b in run.model.named_buffers()])

    plain = statistics(None)
    assert torch.equal(statistics(ODNL(1.0, 40, separate=True)), plain)
    assert not torch.allclose(statistics(ODNL(1.0, 40)), plain)


def test_it_works_with_mixing_and_another_loss(images):
    run = fit(make(images, ODNL(1.0, 20), transforms=[MixUp()], loss=LogitClip()), max_steps=2)
    assert run.step == 2


def test_resumes_bit_for_bit(images, assert_resumes):
    assert_resumes(lambda: make(images, ODNL(1.0, 20)))


def test_bad_input_is_refused(images):
    for eta in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="eta must be >= 0"):
            ODNL(eta)
    with pytest.raises(ValueError, match="aux_batch must be at least 1"):
        ODNL(aux_batch=0)
    with pytest.raises(ValueError, match="at least 2"):
        draw_uniform_labels(5, 1, torch.Generator())
    with pytest.raises(Incompatible, match="--aux ood=patches"):
        make(images, ODNL(), aux=None)
