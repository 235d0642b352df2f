"""AutoMix: the moving average of the classifier, its schedule, and what predicts."""

import copy
import math

import torch
from automix_runs import make
from torch import nn
from torch.testing import assert_close

from weathered.core.fit import fit
from weathered.core.predict import predict_logits
from weathered.procedures.automix import AutoMix


def test_average_moves_by_the_schedule_after_each_step(images):
    run, _ = make(images, AutoMix(momentum=0.5, momentum_end=0.9))
    before = copy.deepcopy(run.modules)
    fit(run, max_steps=1)
    momentum = 0.9 - 0.4 * (1 + math.cos(math.pi / 8)) / 2
    for average, source in (("average", run.model), ("average_mix_head", run.modules["mix_head"])):
        now = run.modules[average].parameters()
        for p, start, q in zip(now, before[average].parameters(), source.parameters(), strict=True):
            assert_close(p, momentum * start + (1 - momentum) * q)
            assert not torch.equal(p, start)


def test_the_default_average_spans_a_sixth_of_training_and_at_most_the_papers():
    assert AutoMix().momentum_range(600) == (0.99, 0.99)
    assert AutoMix().momentum_range(3) == (0.0, 0.0)
    assert AutoMix().momentum_range(100_000) == (0.999, 0.99999)
    assert AutoMix(momentum=0.5).momentum_range(600) == (0.5, 0.5)
    assert AutoMix(momentum=0.5, momentum_end=0.9).momentum_range(600) == (0.5, 0.9)
    assert AutoMix(momentum_end=0.2).momentum_range(600) == (0.2, 0.2)
    assert AutoMix(momentum=1.0).momentum_range(600) == (1.0, 1.0)
    assert AutoMix(momentum=0.9999).momentum_range(600) == (0.9999, 0.99999)


def test_momentum_of_zero_copies_the_model_and_of_one_never_moves(images):
    for momentum in (0.0, 1.0):
        run, _ = make(images, AutoMix(momentum=momentum, momentum_end=momentum))
        start = copy.deepcopy(run.modules["average"])
        fit(run, max_steps=3)
        expected = run.model if momentum == 0 else start
        for p, q in zip(run.modules["average"].parameters(), expected.parameters(), strict=True):
            assert torch.equal(p, q)


def test_average_keeps_batch_statistics_of_its_own_in_every_stage(images):
    run, _ = make(images, AutoMix(momentum=0.0, momentum_end=0.0), norm="batch")
    run.modules["average"].eval()
    fit(run, max_steps=3)
    norms = [m for m in run.modules["average"].modules() if isinstance(m, nn.BatchNorm2d)]
    theirs = [m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 5
    for norm, other in zip(norms, theirs, strict=True):
        # clean images and mixed ones, in each of three steps
        assert norm.get_buffer("num_batches_tracked") == 6
        assert not torch.equal(norm.get_buffer("running_mean"), other.get_buffer("running_mean"))


def test_predictor_is_the_average_with_its_clean_head(images):
    run, _ = make(images, AutoMix(momentum=0.5, momentum_end=0.9), norm="batch")
    fit(run)
    predictor = run.procedure.predictor(run)
    assert predictor is run.modules["average"]
    logits = run.predict(images)
    assert_close(logits, predict_logits(predictor, images))
    x = images.floats(torch.arange(48))
    with torch.no_grad():
        predictor.eval()
        features = predictor.forward_head(predictor.forward_features(x), pre_logits=True)
        assert_close(logits, predictor.get_classifier()(features))
    assert not torch.allclose(logits, predict_logits(run.model, images), atol=1e-3)
