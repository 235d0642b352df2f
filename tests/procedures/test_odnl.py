"""ODNL: fresh uniform labels, outlier exposure in expectation, and plain training at eta = 0."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

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
    settings = Settings(epochs=2, batch_size=12, lr=0.05, weight_decay=0.0)
    model = build_model(f"cnn_small:width=8,norm={norm}", images)
    return Run(model, images, procedure=procedure, aux=aux, settings=settings, **changes)


def batch_of(images):
    rows = torch.arange(12)
    return Batch(images.floats(rows), Target.hard(images.labels[rows]), rows)


def gradients(run, loss):
    run.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


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


def test_logit_gradients_of_the_training_rows_do_not_depend_on_eta(images):
    batch = batch_of(images)
    seen = {}
    for eta in (0.0, 3.0):
        run = make(images, ODNL(eta, 20, separate=True))
        run.begin_step()
        logits = run.model(batch.x)
        logits.retain_grad()
        loss = F.cross_entropy(logits, batch.target.single())
        loss.backward()
        seen[eta] = logits.grad
    assert_close(seen[0.0], seen[3.0])


def test_averaged_over_all_labels_the_term_is_outlier_exposure():
    logits = torch.randn(7, 5, dtype=torch.float64)
    constant = [F.cross_entropy(logits, torch.full((7,), label)) for label in range(5)]
    exposure = -logits.log_softmax(1).mean()
    assert_close(torch.stack(constant).mean(), exposure, atol=1e-12, rtol=0)
    assert float(exposure) > math.log(5)
    assert_close(-torch.zeros(7, 5).log_softmax(1).mean(), torch.tensor(math.log(5)))


def test_gradient_noise_at_uniform_output_has_its_closed_form():
    classes, rng = 4, torch.Generator().manual_seed(0)
    labels = draw_uniform_labels(200_000, classes, rng)
    grads = torch.full((classes,), 1 / classes) - F.one_hot(labels, classes).float()
    assert_close(grads.mean(0), torch.zeros(classes), atol=5e-3, rtol=0)
    expected = (torch.eye(classes) - 1 / classes) / classes
    assert_close(grads.T.cov(correction=0), expected, atol=5e-3, rtol=0)


def test_labels_are_uniform_and_drawn_anew():
    rng = torch.Generator().manual_seed(1)
    first, second = (draw_uniform_labels(100_000, 10, rng) for _ in range(2))
    counts = first.bincount(minlength=10)
    assert len(counts) == 10
    # the 99.9 % point of chi-square with 9 degrees of freedom
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.9
    assert abs(float((first == second).double().mean()) - 0.1) < 0.005


def test_steps_draw_other_labels_for_the_same_images_and_repeat_themselves(images):
    run = make(images, ODNL())
    drawn = []
    for step in (0, 1, 0):
        run.step = step
        run.begin_step()
        drawn.append(run.procedure.draw_labels(run, 50))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_drawing_labels_moves_no_image(images):
    run = make(images, ODNL())
    run.begin_step()
    before = run.aux("ood", 20)
    run.begin_step()
    run.procedure.draw_labels(run, 50)
    assert torch.equal(run.aux("ood", 20), before)
    order = make(images).order(0)
    assert torch.equal(run.order(0), order)


def test_only_its_own_expectation_is_reached(images):
    """On images it can learn by heart, the auxiliary term stays near log C: the labels change at every look."""
    run = make(images, ODNL(5.0, 40))
    fit(run)
    rows = torch.arange(40)
    with torch.no_grad():
        logits = run.model.eval()(AUX["ood"].floats(rows))
    assert float(-logits.log_softmax(1).mean()) < math.log(3) + 0.2
    assert float(logits.softmax(1).amax(1).mean()) < 0.6


def test_separate_passes_keep_batch_statistics_apart(images):
    stats = {}
    for separate in (False, True):
        run = make(images, ODNL(1.0, 40, separate), norm="batch")
        fit(run, max_steps=1)
        stats[separate] = torch.cat([b.flatten() for n, b in run.model.named_buffers() if n.endswith("running_mean")])
    assert not torch.allclose(stats[False], stats[True])


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
