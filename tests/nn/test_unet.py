"""The network for pixels: sizes, heads and encoders."""

import pytest
import torch
from torch.nn import functional as F

from weathered import LDAM, Dataset, Run, Settings, build_model, fit
from weathered.core.errors import SpecError
from weathered.core.predict import outcomes
from weathered.data.sources import load
from weathered.nn.heads import CosineHead, PixelLinear
from weathered.nn.network import model_facts
from weathered.nn.unet import UNet


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (20, 17)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_logits_have_the_size_of_the_image(size, depth):
    net = UNet(in_channels=3, width=4, depth=depth)
    features = net(torch.rand(2, 3, *size))
    assert features.shape == (2, net.num_features, *size)


def test_a_timm_network_can_be_the_encoder():
    data = Dataset.segmentation(
        torch.randint(0, 256, (4, 3, 33, 40), dtype=torch.uint8), torch.zeros(4, 33, 40, dtype=torch.uint8), ("a", "b")
    )
    net = build_model("unet:encoder=resnet18,width=8", data)
    assert net(data.floats(torch.arange(2))).shape == (2, 2, 33, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 2}, "width must be at least 4"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"pretrained": True}, "pretrained needs an encoder"),
        ({"encoder": "resnet1"}, "timm has no model 'resnet1'"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**options)


def test_heads_of_pixels_are_those_of_samples_at_each_place():
    maps = torch.randn(2, 5, 3, 4)
    rows = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    for head in (PixelLinear(5, 7), CosineHead(5, 7)):
        torch.testing.assert_close(head(maps).permute(0, 2, 3, 1).reshape(-1, 7), head(rows))


def test_facts_tell_the_heads_apart():
    data = load("shapes:4")
    assert {"features", "linear_head"} <= model_facts(build_model("unet", data))
    assert "cosine_head" in model_facts(build_model("unet", data, head="cosine"))


@pytest.mark.parametrize(
    ("model", "data"), [("cnn_small", "shapes:4"), ("unet", "digits"), ("timm:resnet18", "shapes:4")]
)
def test_models_that_do_not_fit_the_data_are_refused(model, data):
    with pytest.raises(SpecError, match="does not fit these data"):
        build_model(model, load(data, limit=4))


def test_a_margin_loss_trains_on_pixels():
    data = load("shapes:24")
    counts = data.class_counts.clamp_min(1)
    model = build_model("unet:width=4,depth=1", data, head="cosine")
    run = fit(Run(model, data, loss=LDAM(counts), settings=Settings(epochs=8, batch_size=8, lr=0.05)))
    logits, labels = outcomes(run, data)
    common = F.one_hot(labels, 8).double().mean(0).max()
    assert float((logits.argmax(1) == labels).double().mean()) > float(common) + 0.2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unet:width=4,depth=6", "does not work on 3x20x20 images"),
        ("unet:encoder=swin_tiny_patch4_window7_224", "does not work on 3x20x20 images|gives no feature maps"),
        ("unet:encoder=resnet18,depth=2", "give one of depth and encoder"),
    ],
)
def test_networks_that_do_not_fit_the_images_are_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        build_model(spec, load("shapes:4"))
