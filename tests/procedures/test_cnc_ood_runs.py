"""CnC in a run: one pass for images and outliers, geometry alike, a second order of rows, and what it leaves."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered.audit.ood_metrics import auroc, fpr_at_id_acceptance
from weathered.augment.crop_flip import CropFlip
from weathered.core.errors import DataError, Incompatible, NonFinite, SpecError
from weathered.core.fit import fit
from weathered.core.predict import eval_mode
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.data.dataset import Dataset
from weathered.losses.cross_entropy import CrossEntropy
from weathered.mixing.cutmix import CutMix
from weathered.nn.build import build_model
from weathered.procedures.cnc_ood import OUTLIERS, CnC, OutlierNetwork, make_outliers, outlier_class_losses
from weathered.weighting.class_balanced import ClassBalanced

SGD = Settings(epochs=2, batch_size=12, lr=0.05, weight_decay=0.0, schedule="constant")
PLAIN = {"lam_low": 1.0, "lam_high": 1.0, "min_severity": 0, "max_severity": 0}
"""Options under which an outlier is a training image."""


def run_of(images, procedure=None, model="cnn_small:width=8", settings=SGD, **parts) -> Run:
    return Run(build_model(model, images), images, procedure=procedure or CnC(), settings=settings, **parts)


def batch_of(run: Run, rows: torch.Tensor):
    run.begin_step()
    run.model.train()
    return run.prepare(run.train.inputs.fetch(rows), run.train.labels[rows], rows)


@pytest.mark.parametrize("classes", [2, 3])
def test_there_is_one_output_more_than_classes(classes, images):
    data = images.select(images.labels < classes).replace(class_names=images.class_names[:classes])
    run = run_of(data)
    network, x = run.procedure.predictor(run), data.floats(torch.arange(9))
    assert isinstance(network, OutlierNetwork)
    with torch.no_grad(), eval_mode(network):
        z, score, p = network.all_logits(x), network.outlier_score(x), network.outlier_probability(x)
        assert z.shape == (9, classes + 1)
        assert torch.equal(network(x), run.model(x))
        assert_close(z[:, :-1], network(x))
        assert_close(p.float(), z.softmax(1)[:, -1])
        assert bool(((p >= 0) & (p <= 1)).all())
        assert_close(score, (p / (1 - p)).log())
        # what is left of the probabilities without the outliers is the posterior of the classes
        q = z.double().softmax(1)
        assert_close(q[:, :-1] / (1 - q[:, -1:]), network(x).double().softmax(1), atol=1e-6, rtol=0)
    assert run.predict(data).shape == (len(data), classes)


def test_a_step_by_hand(images):
    procedure = CnC()
    run, rows = run_of(images, procedure, model="mlp:width=16"), torch.tensor([40, 3, 11, 26, 7])
    batch = batch_of(run, rows)
    outliers = procedure.outliers(run, 5)
    run.begin_step()
    x = torch.cat([images.floats(rows), outliers])
    features = run.model.forward_head(run.model.forward_features(x), pre_logits=True)
    z = torch.cat([run.model.head(features), run.modules[OUTLIERS](features)], 1)
    own, strange = outlier_class_losses(z[:5], images.labels[rows], z[5:])
    assert_close(procedure.loss(run, batch), own + strange)
    assert run.task_loss is not None
    assert_close(run.task_loss, own.detach())
    assert not run.task_loss.requires_grad


def test_both_kinds_of_images_pass_through_the_network_at_once(images):
    """Batch normalisation counts one batch a step, with the statistics of images and outliers together."""
    run = run_of(images)
    norm = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))
    first = next(m for m in run.model.modules() if isinstance(m, nn.Conv2d))
    batch = batch_of(run, torch.arange(12))
    both = torch.cat([batch.x, run.procedure.outliers(run, 12)])
    run.begin_step()
    run.procedure.loss(run, batch)
    assert int(norm.num_batches_tracked) == 1
    assert_close(norm.running_mean, 0.1 * first(run.model.normalize(both)).mean((0, 2, 3)))


def test_the_second_order_holds_each_row_once_and_is_another_than_the_first(images):
    """An outlier that is its image says by its pixels which row it was."""
    procedure = CnC(**PLAIN)
    run = run_of(images, procedure)
    seen, first = [], []
    for step in range(4):
        run.step = step
        run.begin_step()
        made = procedure.outliers(run, 12)
        same = (made[:, None] == images.floats(torch.arange(48))).flatten(2).all(2)
        seen += same.long().argmax(1).tolist()
        assert bool(same.any(1).all())
        first += run.order(0)[12 * step : 12 * step + 12].tolist()
    assert sorted(seen) == list(range(48))
    assert sorted(first) == list(range(48))
    assert sum(a == b for a, b in zip(seen, first, strict=True)) < 12


def test_images_and_outliers_go_through_one_geometry(images):
    """White images, cut with a border of zeros: both kinds have black edges as often, with draws of their own."""
    white = images.replace(inputs=type(images.inputs)(torch.full((48, 1, 8, 8), 255, dtype=torch.uint8)))
    procedure = CnC(**PLAIN)
    run = run_of(white, procedure, settings=Settings(epochs=1, batch_size=48), transforms=[CropFlip(2)])
    batch = batch_of(run, torch.arange(48))
    outliers = procedure.outliers(run, 48)
    assert not torch.equal(batch.x, outliers)
    for x in (batch.x, outliers):
        assert set(x.unique().tolist()) == {0.0, 1.0}
        # of 25 windows only one shows no border
        assert 40 <= int((x.flatten(1).amin(1) == 0).sum()) <= 48
    run = run_of(white, CnC(**PLAIN))
    assert bool((run.procedure.outliers(run, 12) == 1).all())


def test_outliers_are_those_of_the_pure_function(images):
    procedure = CnC(lam_low=0.2, lam_high=0.8, different_class=True, kinds=("fog", "contrast"), min_severity=2)
    run = run_of(images, procedure)
    batch_of(run, torch.arange(12))
    made = procedure.outliers(run, 12)
    run.begin_step()
    assert torch.equal(made, procedure.outliers(run, 12))
    plain = CnC(**PLAIN)
    other = run_of(images, plain)
    other.begin_step()
    x = plain.outliers(other, 12)
    run.begin_step()
    same = (x[:, None] == images.floats(torch.arange(48))).flatten(2).all(2).long().argmax(1)
    expected = make_outliers(
        x, images.labels[same], run.generator("cnc outliers"), "cnc", 0.2, 0.8, True, ("fog", "contrast"), 2, 5
    )
    assert torch.equal(made, expected)


def test_resumes_bit_for_bit(images, assert_resumes):
    model = build_model("cnn_small:width=8", images)
    assert_resumes(lambda: Run(copy.deepcopy(model), images, procedure=CnC(), settings=SGD, transforms=[CropFlip(1)]))


def test_it_learns_to_tell_its_outliers_from_images(images):
    run = fit(run_of(images, settings=Settings(epochs=25, batch_size=24, lr=0.05)))
    network = run.procedure.predictor(run)
    x = images.floats(torch.arange(48))
    strange = make_outliers(x, images.labels, generator(9, "new"), kinds=("gaussian_noise", "fog"), min_severity=5)
    with torch.no_grad(), eval_mode(network):
        scores = network.outlier_score(x), network.outlier_score(strange)
        assert auroc(*scores).value > 0.8
        # before training it could not
        fresh = run_of(images)
        untrained = fresh.procedure.predictor(fresh).eval()
        assert auroc(*scores).value > auroc(untrained.outlier_score(x), untrained.outlier_score(strange)).value
    assert float((run.predict(images).argmax(1) == images.labels).float().mean()) > 0.9


class Judge(nn.Module):
    """Features are the mean and a 1; by hand the probability of outliers is 0.9 for bright images, 0.1 for dark."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, x):
        return torch.stack([x.mean((1, 2, 3)), torch.ones(len(x))], 1)

    def forward_head(self, features, pre_logits=False):
        return features if pre_logits else self.head(features)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def judging_network() -> OutlierNetwork:
    outliers = nn.Linear(2, 1)
    # odds 1/9 for a mean of 0, 9 for a mean of 1, against two classes of equal logits
    with torch.no_grad():
        outliers.weight.copy_(torch.tensor([[2 * math.log(9), 0.0]]))
        outliers.bias.fill_(math.log(2) - math.log(9))
    return OutlierNetwork(Judge(), outliers)


def test_a_higher_score_is_more_out_of_distribution():
    """The published evaluation feeds the probability of outliers as evidence for images, and so prints 1 - AUROC."""
    network = judging_network()
    inside, outside = torch.zeros(20, 1, 4, 4), torch.ones(30, 1, 4, 4)
    with torch.no_grad():
        known, strange = network.outlier_score(inside), network.outlier_score(outside)
        assert_close(
            network.outlier_probability(inside), torch.full((20,), 0.1, dtype=torch.float64), atol=1e-6, rtol=0
        )
        assert_close(
            network.outlier_probability(outside), torch.full((30,), 0.9, dtype=torch.float64), atol=1e-6, rtol=0
        )
    assert auroc(known, strange).value == 1.0
    assert fpr_at_id_acceptance(known, strange).value == 0.0


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"transforms": [CutMix()]}, "hard_target"),
        ({"loss": CrossEntropy()}, "the slot 'loss'"),
        ({"reweight": ClassBalanced([16, 16, 16])}, "the slot 'reweight'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(images, parts, reason):
    with pytest.raises(Incompatible, match=reason):
        run_of(images, **parts)


def test_models_and_data_that_do_not_fit_are_refused(images, wine):
    with pytest.raises(Incompatible, match="needs 'linear_head'.*head=linear"):
        Run(build_model("cnn_small:width=8", images, head="cosine"), images, procedure=CnC(), settings=SGD)
    with pytest.raises(Incompatible, match="needs 'image'"):
        run_of(wine, model="mlp:width=8")
    with pytest.raises(SpecError, match="saturate changes nothing in grey images"):
        run_of(images, CnC(kinds=("fog", "saturate")))
    two = Dataset.of(torch.zeros(48, 2, 8, 8, dtype=torch.uint8), images.labels)
    with pytest.raises(SpecError, match="1 or 3 channels, data has 2"):
        run_of(two)


def test_batches_of_one_class_are_refused_where_patches_must_differ(images):
    """One image of another class among 48: some batch of 12 has none."""
    rare = images.replace(labels=(torch.arange(48) == 5).long(), class_names=("a", "b"))
    with pytest.raises(DataError, match="batch of step \\d holds samples of one class alone, .* --batch-size"):
        fit(run_of(rare, CnC(different_class=True)), max_steps=4)
    fit(run_of(rare, CnC()), max_steps=4)
    alone = images.replace(labels=torch.zeros(48).long())
    with pytest.raises(DataError, match="data holds samples of one class alone"):
        run_of(alone, CnC(different_class=True))


def test_logits_that_are_not_finite_end_the_run(images):
    run = run_of(images)
    with torch.no_grad():
        run.modules[OUTLIERS].weight[0] = math.nan
    with pytest.raises(NonFinite, match="CnC"):
        fit(run, max_steps=1)


def test_colour_images_are_saturated_as_well(images):
    colour = Dataset.of(images.inputs.fetch(torch.arange(48)).repeat(1, 3, 1, 1), images.labels)
    run = run_of(colour)
    assert "saturate" in run.procedure.drawn_kinds
    assert len(run.procedure.drawn_kinds) == 15
    grey = run_of(images)
    assert len(grey.procedure.drawn_kinds) == 14
    fit(run, max_steps=1)
