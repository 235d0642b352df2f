"""Evidence from a model, the head that explains its logits, and thresholds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from weathered.core.errors import NonFinite
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.scores.base import Evidence, LinearHead, threshold_at_tpr
from weathered.scores.extract import extract, stream


@pytest.fixture
def images():
    pixels = torch.randint(256, (23, 1, 8, 8), generator=generator(0, "pixels"), dtype=torch.uint8)
    return Dataset.of(pixels, torch.arange(23) % 5)


@pytest.fixture
def model(images):
    network = build_model("cnn_small:width=8", images)
    network(images.floats(torch.arange(23)))  # moves the running statistics of batch normalisation off their start
    return network


def parts(evidence) -> tuple[torch.Tensor, torch.Tensor, LinearHead]:
    assert evidence.logits is not None
    assert evidence.features is not None
    assert evidence.head is not None
    return evidence.logits, evidence.features, evidence.head


def logits_of(model, data):
    return parts(extract(model, data))[0]


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
def test_equals_the_model_itself_for_any_block_size(images, model, batch_size):
    evidence = extract(model, images, batch_size)
    model.eval()
    x = images.floats(torch.arange(23))
    logits, features, head = parts(evidence)
    assert_close(logits, model(x).detach(), atol=1e-5, rtol=1e-5)
    assert_close(features, model.forward_head(model.forward_features(x), pre_logits=True).detach())
    assert_close(features @ head.weight.T + head.bias, logits)
    assert evidence.inputs is images
    assert not logits.requires_grad


def test_takes_tensors_as_well_as_data_sets(images, model):
    x = images.floats(torch.arange(23))
    assert torch.equal(logits_of(model, x), logits_of(model, images))
    assert torch.equal(logits_of(model, images.inputs.fetch(torch.arange(23))), logits_of(model, images))


def test_a_timm_network_serves_too(images):
    logits, features, head = parts(extract(build_model("timm:test_resnet", images), images, 10))
    assert_close(features @ head.weight.T + head.bias, logits, atol=1e-4, rtol=1e-4)


def modes(model):
    return [module.training for module in model.modules()]


def test_the_mode_of_each_module_comes_back(images, model):
    model.train()
    model.head.eval()
    before, statistics = modes(model), {k: v.clone() for k, v in model.state_dict().items()}
    for number, _ in enumerate(stream(model, images, 5)):
        assert modes(model) == before
        if number == 2:
            break
    extract(model, images)
    assert modes(model) == before
    assert all(torch.equal(v, statistics[k]) for k, v in model.state_dict().items())


def test_the_mode_comes_back_after_an_error_and_the_row_is_named(model):
    table = torch.rand(23, 1, 8, 8, generator=generator(0, "x"))
    table[17] = float("nan")
    model.train()
    with pytest.raises(NonFinite, match="row 17 "):
        extract(model, table, 5)
    with pytest.raises(RuntimeError):
        extract(model, torch.rand(4, 3, 8, 8))
    assert all(modes(model))


class Scaled(nn.Module):
    """Says ten times what its last layer says."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward_features(self, x):
        return self.network.forward_features(x)

    def forward_head(self, f, pre_logits=False):
        out = self.network.forward_head(f, pre_logits=pre_logits)
        return out if pre_logits else 10 * out

    def get_classifier(self):
        return self.network.get_classifier()


def test_a_head_that_does_not_explain_the_logits_is_left_out(images, model):
    assert extract(Scaled(model), images).head is None
    assert extract(build_model("cnn_small:width=8", images, head="cosine"), images).head is None


def test_a_plain_module_gives_logits_only(images):
    evidence = extract(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images)
    assert evidence.logits is not None
    assert evidence.logits.shape == (23, 3)
    assert evidence.features is None
    assert evidence.head is None


def test_the_head_is_a_copy(images, model):
    head = parts(extract(model, images))[2]
    before = head.weight.clone()
    with torch.no_grad():
        model.head.weight.add_(1)
    assert torch.equal(head.weight, before)
    assert torch.equal(LinearHead.of(nn.Linear(4, 2, bias=False)).bias, torch.zeros(2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logits": torch.zeros(3, 2), "features": torch.zeros(4, 5)}, "same inputs"),
        ({"logits": torch.zeros(3, 2), "inputs": torch.zeros(2, 5)}, "same inputs"),
        ({"logits": torch.zeros(3, 2), "head": LinearHead(torch.zeros(3, 5), torch.zeros(3))}, "does not fit"),
        ({"features": torch.zeros(3, 2), "head": LinearHead(torch.zeros(3, 5), torch.zeros(3))}, "does not fit"),
    ],
)
def test_evidence_that_disagrees_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Evidence(**fields)


def test_no_input_and_no_block_are_refused(model):
    with pytest.raises(ValueError, match="at least one input"):
        extract(model, torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extract(model, torch.zeros(2, 1, 8, 8), 0)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    st.floats(0.001, 1.0),
)
def test_the_threshold_is_the_smallest_that_accepts_enough(values, accept):
    scores = torch.tensor(values, dtype=torch.float64)
    t = threshold_at_tpr(scores, accept)
    assert float((scores <= t).double().mean()) >= accept - 1e-9
    assert float((scores < t).double().mean()) < accept


def test_the_threshold_counts_in_whole_samples():
    scores = torch.arange(1, 101).double()
    assert threshold_at_tpr(scores, 0.95) == 95
    assert threshold_at_tpr(scores, 0.07) == 7
    assert threshold_at_tpr(scores, 1.0) == 100


@pytest.mark.parametrize("accept", [0.0, -0.1, 1.1, float("nan")])
def test_the_threshold_refuses_impossible_shares(accept):
    with pytest.raises(ValueError, match="accept must be in"):
        threshold_at_tpr(torch.zeros(3), accept)


@pytest.mark.parametrize("scores", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, float("nan")])])
def test_the_threshold_refuses_bad_scores(scores):
    with pytest.raises(ValueError, match="without NaN"):
        threshold_at_tpr(scores)
