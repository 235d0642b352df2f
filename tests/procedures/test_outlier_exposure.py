"""Outlier exposure: uniform predictions on outliers, ODNL on average, and plain training at eta = 0."""

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
from weathered.nn.build import build_model
from weathered.procedures.odnl import ODNL
from weathered.procedures.outlier_exposure import OutlierExposure, uniform_cross_entropy
from weathered.scores.base import doubt

AUX = {"ood": Dataset.of(torch.arange(256).repeat(30)[: 40 * 64].view(40, 1, 8, 8).to(torch.uint8), torch.zeros(40))}


def make(images: Dataset, procedure=None, epochs: int = 2, aux=AUX) -> Run:
    settings = Settings(epochs=epochs, batch_size=12, lr=0.05, weight_decay=0.0)
    return Run(build_model("cnn_small:width=8", images), images, procedure=procedure, aux=aux, settings=settings)


def test_the_term_is_the_cross_entropy_of_the_uniform_distribution():
    logits = 3 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double()
    uniform = torch.full((20, 5), 0.2, dtype=torch.float64)
    assert_close(uniform_cross_entropy(logits), F.cross_entropy(logits, uniform, reduction="none"))
    assert_close(uniform_cross_entropy(torch.full((1, 5), 7.0)), torch.tensor([math.log(5)]))
    each = torch.stack([F.cross_entropy(logits, torch.full((20,), c), reduction="none") for c in range(5)])
    assert_close(uniform_cross_entropy(logits), each.mean(0))


@pytest.mark.parametrize("separate", [False, True])
def test_the_loss_is_the_mean_of_odnl_over_all_labels(images, separate):
    rows = torch.arange(12)
    batch = Batch(images.floats(rows), Target.hard(images.labels[rows]), rows)
    run = make(images, OutlierExposure(1.5, 20, separate))
    run.begin_step()
    found = run.procedure.loss(run, batch)
    losses = []
    for label in range(images.num_classes):

        class Constant(ODNL):
            def draw_labels(self, run, size, label=label):
                return torch.full((size,), label)

        other = make(images, Constant(1.5, 20, separate))
        other.begin_step()
        losses.append(other.procedure.loss(other, batch))
    assert_close(found, torch.stack(losses).mean())


def test_without_weight_it_is_plain_training(images):
    plain, off = (fit(make(images, procedure), max_steps=3) for procedure in (None, OutlierExposure(0.0)))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), off.model.parameters(), strict=True))


def test_it_learns_to_doubt_what_it_was_shown(images):
    outliers = AUX["ood"].floats(torch.arange(40))
    doubts = []
    for procedure in (None, OutlierExposure(0.5, 24)):
        run = fit(make(images, procedure, epochs=12))
        with torch.no_grad():
            doubts.append(float(doubt(run.model.eval()(outliers), 1.0).mean()))
    assert doubts[1] > doubts[0] + 0.1


def test_it_needs_outliers_and_legal_arguments(images):
    with pytest.raises(Incompatible, match="aux:ood"):
        make(images, OutlierExposure(), aux=None)
    for wrong in ({"eta": -1.0}, {"eta": math.inf}, {"aux_batch": 0}):
        with pytest.raises(ValueError, match="must be"):
            OutlierExposure(**wrong)
