"""LADC in a run: a classifier that learns alone on the balanced set, resuming, and what is refused."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.rng import generator
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.losses.ldam import LDAM
from weathered.losses.logit_adjustment import LogitAdjustment
from weathered.mixing.mixup import MixUp
from weathered.nn.build import build_model
from weathered.procedures.ladc import LADC, FeatureCalibration, class_gaussians
from weathered.terms.area_under_margin import AreaUnderMargin
from weathered.weighting.drw import DRW

SETTINGS = Settings(epochs=4, batch_size=8, lr=0.05)


def make(images, procedure=None, model="cnn_small:width=8", **changes) -> Run:
    rows = torch.cat([(images.labels == c).nonzero()[:, 0][:n] for c, n in ((0, 16), (1, 8), (2, 2))])
    data = changes.pop("data", images.select(rows))
    return Run(build_model(model, data), data, procedure=procedure, settings=SETTINGS, **changes)


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_covariances_beyond_the_limit_are_refused_before_they_are_made():
    features, labels = torch.zeros(2, 20_000), torch.arange(2)
    with pytest.raises(ValueError, match="full covariances of 2 classes and 20000 features .* fewer features"):
        class_gaussians(features, labels)


def test_a_start_at_the_end_is_plain_training(images):
    plain, never = state(fit(make(images))), state(fit(make(images, LADC(1.0))))
    assert all(plain[name].equal(never[name]) for name in plain)


def test_from_its_start_on_only_the_classifier_moves(images):
    run, plain = make(images, LADC(0.5)), make(images)
    half = run.total_steps // 2
    fit(plain, max_steps=half)
    fit(run, max_steps=half)
    before = state(run)
    assert all(before[name].equal(value) for name, value in state(plain).items())
    fit(run)
    after = state(run)
    assert {name for name in before if not before[name].equal(after[name])} == {"head.weight", "head.bias"}
    assert {"running_mean", "running_var"} <= {name.rpartition(".")[2] for name in before}


def test_the_second_stage_is_descent_on_the_balanced_set(images):
    """Against a loop by hand, on the features of the network and the draws of `FeatureCalibration`."""
    run = make(images, LADC(0.5))
    half = run.total_steps // 2
    fit(run, max_steps=half)
    x = run.train.floats(torch.arange(len(run.train)))
    run.model.eval()
    with torch.no_grad():
        z = run.model.forward_head(run.model.forward_features(x), pre_logits=True)
    calibration = FeatureCalibration().fit(z, run.train.labels)
    rows, labels = calibration.balance(z, run.train.labels, generator(run.seed, "ladc features"))
    assert labels.bincount().tolist() == [16, 16, 16]
    steps = len(labels) // 8
    order = torch.randperm(len(labels), generator=generator(run.seed, "ladc order", half // steps))
    chosen = order[half % steps * 8 :][:8]
    expected = F.cross_entropy(run.model.get_classifier()(rows[chosen]), labels[chosen])
    run.begin_step()
    run.model.train()
    found = run.procedure.loss(run, run.prepare(x[:8], run.train.labels[:8], torch.arange(8)))
    assert_close(found, expected)


def test_classes_of_one_size_train_the_classifier_on_the_rows_as_they_are(images):
    run = make(images, LADC(0.5), data=images)
    half = run.total_steps // 2
    fit(run, max_steps=half)
    x = run.train.floats(torch.arange(len(run.train)))
    run.model.eval()
    with torch.no_grad():
        z = run.model.forward_head(run.model.forward_features(x), pre_logits=True)
    fit(run, max_steps=1)
    rows, labels = run.procedure._balanced
    assert_close(rows, z)
    assert torch.equal(labels, run.train.labels)


def test_a_pass_shows_each_row_of_the_balanced_set_once(images):
    run = make(images, LADC(0.0))
    rows, labels = torch.arange(48.0)[:, None], torch.zeros(48).long()
    seen = []
    for step in range(12):
        run.step = step
        seen.append(run.procedure._rows(run, rows, labels)[0][:, 0])
    assert sorted(torch.cat(seen[:6]).tolist()) == sorted(torch.cat(seen[6:]).tolist()) == list(range(48))
    assert not torch.equal(torch.cat(seen[:6]), torch.cat(seen[6:]))


@pytest.mark.parametrize("start", [0.0, 0.25, 0.5])
def test_resumes_bit_for_bit(images, assert_resumes, start):
    assert_resumes(lambda: make(images, LADC(start)))


def test_a_second_run_takes_features_of_its_own(images):
    procedure = LADC(0.5)
    first = state(fit(make(images, procedure)))
    again = state(fit(make(images, procedure)))
    assert all(first[name].equal(again[name]) for name in first)
    other = make(images, procedure, model="cnn_small:width=16")
    assert fit(other).step == other.total_steps


def test_it_works_beside_mixing(images):
    run = fit(make(images, LADC(0.5), transforms=[MixUp()]))
    assert run.predict(run.train).isfinite().all()


def test_runs_that_cannot_work_are_refused(images):
    with pytest.raises(ValueError, match=r"classes without one: \[2\]"):
        make(images, LADC(), data=images.select(images.labels < 2))
    with pytest.raises(ValueError, match="no class has head_count=99 rows"):
        make(images, LADC(head_count=99))
    counts = torch.tensor([16, 8, 2])
    with pytest.raises(Incompatible, match="LADC runs earlier and trains the classifier on as many features of each"):
        make(images, LADC(), loss=LogitAdjustment(counts))
    with pytest.raises(Incompatible, match="LADC"):
        make(images, LADC(), loss=LDAM(counts))
    for slot, part in (("reweight", DRW(counts)), ("terms", [AreaUnderMargin()])):
        with pytest.raises(Incompatible, match="which LADC never calls"):
            make(images, LADC(), **{slot: part})
