"""Classifier re-training: before, at and after its start, resuming, and tau-normalisation beside it."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered.core.errors import Incompatible
from weathered.core.fit import fit
from weathered.core.run import Run
from weathered.core.settings import Settings
from weathered.nn.build import build_model
from weathered.procedures.classifier_retraining import ClassifierRetraining
from weathered.procedures.tau_normalisation import TauNormalisation, tau_normalised
from weathered.weighting.class_balanced_sampling import ClassBalancedSampling

SETTINGS = Settings(epochs=4, batch_size=12, lr=0.05)


def make(images, procedure=None, model="cnn_small:width=8", **changes) -> Run:
    return Run(build_model(model, images), images, procedure=procedure, settings=SETTINGS, **changes)


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_a_start_at_the_end_is_plain_training(images):
    plain, never = state(fit(make(images))), state(fit(make(images, ClassifierRetraining(1.0))))
    assert all(plain[name].equal(never[name]) for name in plain)


@pytest.mark.parametrize("reset", [False, True])
def test_from_its_start_on_only_the_classifier_moves(images, reset):
    run, plain = (
        make(images, procedure, sampler=ClassBalancedSampling(start=0.5))
        for procedure in (ClassifierRetraining(0.5, reset), None)
    )
    half = run.total_steps // 2
    fit(plain, max_steps=half)
    fit(run, max_steps=half)
    before = state(run)
    assert all(before[name].equal(value) for name, value in state(plain).items())
    fit(run)
    after = state(run)
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_new_classifier_forgets_the_old_one(images):
    kept, anew = (make(images, ClassifierRetraining(0.5, reset)) for reset in (False, True))
    half = kept.total_steps // 2
    for run in (kept, anew):
        fit(run, max_steps=half)
    old = kept.model.head.weight.detach().clone()
    for run in (kept, anew):
        fit(run, max_steps=1)
    assert float((kept.model.head.weight - old).norm()) < 0.5 * float((anew.model.head.weight - old).norm())
    again = make(images, ClassifierRetraining(0.5, True))
    fit(again, max_steps=half + 1)
    assert torch.equal(again.model.head.weight, anew.model.head.weight)


@pytest.mark.parametrize("reset", [False, True])
def test_resumes_bit_for_bit(images, assert_resumes, reset):
    assert_resumes(lambda: make(images, ClassifierRetraining(0.3, reset)))


def test_lengths_of_class_vectors():
    linear = nn.Linear(6, 4)
    assert torch.equal(tau_normalised(linear, 0.0).weight, linear.weight)
    unit = tau_normalised(linear, 1.0).weight
    assert_close(unit.norm(dim=1), torch.ones(4))
    assert_close(unit * linear.weight.norm(dim=1, keepdim=True), linear.weight.detach())
    half = tau_normalised(linear, 0.5)
    assert_close(half.weight.norm(dim=1), linear.weight.detach().norm(dim=1).sqrt())
    assert half.bias is None
    with torch.no_grad():
        linear.weight[1] = 0
    assert torch.equal(tau_normalised(linear, 1.0).weight[1], torch.zeros(6))


def test_training_is_plain_and_prediction_by_vectors_of_one_length(images):
    run, plain = fit(make(images, TauNormalisation())), fit(make(images))
    assert all(state(plain)[name].equal(value) for name, value in state(run).items())
    model, x = run.model.eval(), images.floats(torch.arange(len(images)))
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
    expected = features @ nn.functional.normalize(model.head.weight.detach(), dim=1).T
    assert_close(run.predict(images), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.head.weight, run.model.head.weight)


def test_bad_use_is_refused(images):
    for build in (ClassifierRetraining, TauNormalisation):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 2"):
            build(2)
    with pytest.raises(ValueError, match="tau must be in"):
        tau_normalised(nn.Linear(2, 2), -0.1)
    with pytest.raises(Incompatible, match="class vectors"):
        Run(build_model("cnn_small:width=8", images, head="cosine"), images, procedure=TauNormalisation())
