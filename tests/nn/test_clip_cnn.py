"""The network for clips: it looks at frames alone, whatever their order, and fits clips only."""

import pytest
import torch
from torch.testing import assert_close

from weathered.core.errors import SpecError
from weathered.data.sources import load
from weathered.nn.build import build_model
from weathered.nn.clip_cnn import ClipCNN
from weathered.nn.network import input_statistics


def test_features_are_those_of_single_frames_pooled():
    network = ClipCNN(2, width=4, depth=2, kernel=3, hidden=5).eval()
    x = torch.rand(3, 6, 2, 9, 8)
    maps = network.forward_features(x)
    assert maps.shape == (3, 8, 6, 4, 4)
    for frame in range(6):
        assert_close(network.forward_features(x[:, frame : frame + 1])[:, :, 0], maps[:, :, frame])
    assert_close(network(x[:, torch.randperm(6)]), network(x))
    assert_close(network(x), network.hidden(maps.amax((2, 3, 4))).relu())
    mean = ClipCNN(2, width=4, pool="mean")
    maps = mean.forward_features(x)
    assert_close(mean(x), mean.hidden(maps.mean((2, 3, 4))).relu())


def test_a_texture_in_one_frame_is_enough():
    network = ClipCNN(1)
    x = torch.zeros(1, 4, 1, 9, 9)
    x[0, 2, 0, 3:6, 3:6] = 1
    assert (network(x) != network(torch.zeros_like(x))).any()


def test_it_is_built_by_name_and_normalises_by_channel():
    data = load("clips:30")
    model = build_model("clip-cnn:width=4,hidden=8,pool=mean", data, seed=1)
    mean, std = input_statistics(data)
    x = data.floats(torch.arange(30))
    assert_close(mean, x.mean().view(1))
    assert_close(std, x.std(correction=0).view(1))
    assert_close(model.normalize(x).mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert model(x).shape == (30, 4)
    assert build_model("mlp:width=8", data)(x).shape == (30, 4)


@pytest.mark.parametrize(
    ("spec", "source", "message"),
    [
        ("clip-cnn", "digits", "clip-cnn needs clips, but the data are images; use --model cnn_small"),
        ("cnn_small", "clips:20", "cnn_small needs images, but the data are clips; use --model clip-cnn"),
        ("timm:resnet18", "clips:20", "timm:resnet18 needs images, but the data are clips; use --model clip-cnn"),
        ("clip-cnn:kernel=4", "clips:20", "kernel must be odd and at least 1, got 4"),
        ("clip-cnn:pool=min", "clips:20", "option 'pool' takes one of 'max', 'mean'"),
        ("clip-cnn:depth=0", "clips:20", "width, depth and hidden must be at least 1"),
        ("clip-cnn:widht=4", "clips:20", "Did you mean 'width'"),
    ],
)
def test_what_does_not_fit_is_said(spec, source, message):
    with pytest.raises(SpecError) as error:
        build_model(spec, load(source, limit=20))
    assert message in str(error.value)


def test_images_are_no_clips():
    with pytest.raises(ValueError, match=r"clip-cnn needs clips \(B, T, C, H, W\)"):
        ClipCNN(1)(torch.rand(2, 1, 8, 8))
