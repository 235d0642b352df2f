"""AveragedViews: the mean of the probabilities of the views, and no more."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from weathered import build_model
from weathered.core.predict import predict_logits
from weathered.core.rng import generator
from weathered.nn.averaged_views import VIEWS, AveragedViews, identity, mirror, named_views, shift


def images(size=5):
    return torch.rand(size, 1, 8, 8, generator=generator(0, "views"))


def linear(seed=0):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    rng = generator(seed, "weights")
    for parameter in network.parameters():
        parameter.data.normal_(generator=rng)
    return network


def test_it_is_the_mean_of_the_probabilities():
    model, x = linear(), images()
    views = named_views(["flip", "shift"])
    assert len(views) == 6
    expected = torch.stack([model(view(x)).softmax(1) for view in views]).mean(0)
    found = AveragedViews(model, views)(x)
    assert_close(found.softmax(1), expected)
    assert_close(found.exp().sum(1), torch.ones(5))
    assert not torch.allclose(expected, model(x).softmax(1), atol=0.01)


def test_one_view_is_the_model_exactly():
    model, x = linear(), images()
    assert torch.equal(AveragedViews(model, named_views([]))(x), model(x))
    assert torch.equal(AveragedViews(model, [mirror])(x), model(x.flip(3)))


def test_the_average_does_not_depend_on_the_view_of_a_group():
    """Image and mirror image have the same two views."""
    averaged, x = AveragedViews(linear(), named_views(["flip"])), images()
    assert_close(averaged(x), averaged(x.flip(3)))


@pytest.mark.parametrize("name", VIEWS)
def test_an_invariant_model_keeps_its_answer(name):
    class Extremes(nn.Module):
        """Reads the centre of images that no shift by two pixels moves out of it."""

        def forward(self, x):
            return torch.stack([x.amax((1, 2, 3)), x.amin((1, 2, 3)), x.amax((1, 2, 3)) ** 2], 1) * 5

    x = torch.zeros(4, 1, 8, 8)
    x[:, :, 3:5, 3:5] = torch.rand(4, 1, 2, 2, generator=generator(0, "centre")) - 0.5
    model = Extremes()
    assert_close(AveragedViews(model, named_views([name]))(x).softmax(1), model(x).softmax(1))


def test_shifts_move_right_and_down_and_repeat_the_border():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert shift(x, 1, 0)[0, 0].tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]
    assert shift(x, 0, -2)[0, 0].tolist() == [[8, 9, 10, 11]] * 3
    assert torch.equal(shift(x, 0, 0), x)
    moved = [view(x) for view in VIEWS["shift"] + VIEWS["shift-2"]]
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 8


def test_logits_are_scaled_before_they_are_averaged():
    model, x = linear(), images()
    found = AveragedViews(model, [identity, mirror], lambda logits: logits * 3)(x)
    assert_close(found.softmax(1), ((model(x) * 3).softmax(1) + (model(x.flip(3)) * 3).softmax(1)) / 2)


def test_wide_logits_stay_finite_and_narrow_ones_are_widened():
    class Steep(nn.Module):
        def forward(self, x):
            return (x.flatten(1)[:, :3] * 1e4).half()

    out = AveragedViews(Steep(), [identity, mirror])(images())
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all())


def test_a_network_is_left_as_it_was(small_digits):
    model = build_model("cnn_small:width=8", small_digits)
    averaged = AveragedViews(model, named_views(["flip"]))
    assert [p.data_ptr() for p in averaged.parameters()] == [p.data_ptr() for p in model.parameters()]
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = predict_logits(averaged, small_digits)
    assert found.shape == (len(small_digits), 10)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    flipped = small_digits.floats(torch.arange(len(small_digits))).flip(3)
    model.eval()
    own = predict_logits(model, small_digits).softmax(1)
    assert_close(found.softmax(1), (own + model(flipped).detach().softmax(1)) / 2, atol=1e-5, rtol=0)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="views must hold at least one view"):
        AveragedViews(linear(), [])
    with pytest.raises(ValueError, match="no view 'turn'; there are: flip, shift, shift-2"):
        named_views(["flip", "turn"])
    with pytest.raises(ValueError, match=r"views can be averaged of logits \(B, C\), got \(5, 2, 8, 8\)"):
        AveragedViews(nn.Conv2d(1, 2, 1), [identity])(images())
