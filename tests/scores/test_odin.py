"""ODIN: reduces to MSP, moves towards the prediction by exactly epsilon, and leaves the model as it was."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.nn.build import build_model
from weathered.scores.base import Evidence
from weathered.scores.msp import msp_score
from weathered.scores.odin import ODIN, odin_score


@pytest.fixture
def images():
    return torch.rand(12, 1, 8, 8, generator=generator(0, "x"))


@pytest.fixture
def model(images):
    network = build_model("cnn_small:width=8", Dataset.of((images * 255).to(torch.uint8), torch.arange(12) % 3))
    network(images)
    return network


def test_no_step_at_temperature_one_is_msp(model, images):
    score = odin_score(model, images, temperature=1.0, epsilon=0.0)
    assert_close(score, msp_score(model.eval()(images).detach()))


def test_the_step_is_epsilon_in_each_pixel_and_raises_confidence(model, images):
    seen = []
    handle = model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    odin_score(model, images, temperature=10.0, epsilon=0.01)
    handle.remove()
    step = (seen[-1] - images).abs()
    assert_close(step[step > 1e-4], torch.full_like(step[step > 1e-4], 0.01), atol=1e-6, rtol=0)
    assert float((step > 1e-4).double().mean()) > 0.9
    # a small step along the sign of the gradient can only make the prediction surer
    small = odin_score(model, images, 10.0, 1e-4)
    assert bool((small <= odin_score(model, images, 10.0, 0.0)).all())
    assert float((odin_score(model, images, 10.0, 0.0) - small).max()) > 0


def test_a_linear_model_has_a_closed_form():
    layer = nn.Linear(6, 2, dtype=torch.float64)
    x = torch.randn(20, 6, generator=generator(0, "x"), dtype=torch.float64)
    margin = (layer(x)[:, 0] - layer(x)[:, 1]).abs().detach()
    slope = (layer.weight[0] - layer.weight[1]).abs().sum().item()
    expected = (1 - torch.tanh((margin + 0.3 * slope) / 2 / 5)) / 2
    assert_close(odin_score(layer, x, temperature=5.0, epsilon=0.3), expected)


def test_the_signs_are_those_of_the_cross_entropy(model, images):
    model.eval()
    leaf = images.double().requires_grad_()
    logits = model.double()(leaf)
    gradient = torch.autograd.grad(cross_entropy(logits / 3, logits.argmax(1)), leaf)[0]
    moved = leaf.detach() - 0.01 * gradient.sign()
    assert_close(
        odin_score(model, images.double(), 3.0, 0.01), msp_score(model(moved).detach(), 3.0), rtol=1e-9, atol=0
    )


def test_confident_predictions_still_move():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(100 * torch.eye(2))
        layer.bias.zero_()
    x = torch.tensor([[1.0, 0.0]])
    assert layer(x).softmax(1)[0, 0] == 1  # for this input the gradient of the cross entropy rounds to 0
    assert float(odin_score(layer, x, 1.0, 0.1).log()) == pytest.approx(-120, abs=1e-3)


def test_modes_gradients_and_flags_stay(model, images):
    model.train()
    model.head.eval()
    model.body.stages[0].requires_grad_(False)
    for parameter in model.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    given = images.clone()
    with torch.no_grad():
        odin_score(model, images)
    with pytest.raises(RuntimeError):
        odin_score(model, torch.rand(2, 3, 8, 8))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.body.parameters())
    assert all(bool((p.grad == 1).all()) for p in model.head.parameters())
    assert torch.equal(images, given)
    assert not images.requires_grad


def test_works_without_gradients_and_in_inference_mode(model, images):
    expected = odin_score(model, images)
    with torch.no_grad():
        assert torch.equal(odin_score(model, images), expected)
    with torch.inference_mode():
        assert torch.equal(odin_score(model, images), expected)
        assert torch.equal(odin_score(model, images.clone()), expected)


def test_blocks_change_nothing(model, images):
    whole = ODIN(batch_size=12).score(Evidence(model=model, inputs=images))
    assert_close(ODIN(batch_size=5).score(Evidence(model=model, inputs=images)), whole, atol=1e-7, rtol=1e-5)
    assert ODIN().score(Evidence(model=model, inputs=images[:0])).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": 0.0}, "temperature"), ({"epsilon": -0.1}, "epsilon"), ({"epsilon": float("nan")}, "epsilon")],
)
def test_impossible_options_are_refused(options, message, model, images):
    with pytest.raises(ValueError, match=message):
        ODIN(**options)
    with pytest.raises(ValueError, match=message):
        odin_score(model, images, **options)


def test_inputs_it_cannot_use_are_refused(model):
    with pytest.raises(ValueError, match="at least two classes"):
        odin_score(nn.Linear(3, 1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x must be floating, got torch\.uint8"):
        odin_score(model, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ODIN(batch_size=0)
