"""ResNets: counts of the paper, shapes of all variants, what a shortcut sees, blocks that start as their shortcut."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.errors import SpecError
from weathered.nn.build import build_model
from weathered.nn.network import seeded
from weathered.nn.resnet import Bottleneck, ResNet

VARIANTS = ("a", "b", "c", "d")
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@cache
def paper_size(variant: str) -> ResNet:
    with torch.device("meta"):
        return ResNet(depth=50, variant=variant)


def small(variant: str = "a", **options) -> ResNet:
    with seeded(0):
        return ResNet(depth=26, variant=variant, width=8, small=True, **options)


def bottleneck(inputs: int, inner: int, stride: int, variant: str) -> Bottleneck:
    with seeded(0):
        return Bottleneck(inputs, inner, stride, variant)


@pytest.mark.parametrize(
    ("variant", "count"), [("a", 25_557_032), ("b", 25_557_032), ("c", 25_576_264), ("d", 25_576_264)]
)
def test_resnet_50_has_the_parameters_of_the_paper(variant, count):
    body = paper_size(variant)
    classifier = 1000 * body.num_features + 1000
    assert sum(parameter.numel() for parameter in body.parameters()) + classifier == count


@pytest.mark.parametrize(("variant", "expected"), [("b", 0.118e9), ("c", 0.358e9), ("d", 0.358e9)])
def test_the_deep_stem_has_three_times_the_multiply_adds(variant, expected):
    counted = []

    def count(layer: nn.Conv2d, _, output) -> None:
        counted.append(output[0, 0].numel() * layer.weight.numel())

    stem = paper_size(variant).stem
    hooks = [layer.register_forward_hook(count) for layer in stem if isinstance(layer, nn.Conv2d)]
    stem(torch.empty(1, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    assert sum(counted) == pytest.approx(expected, rel=2e-3)


def test_all_variants_have_the_maps_of_resnet_a():
    x = torch.empty(2, 3, 224, 224, device="meta")
    shapes = {variant: [m.shape for m in paper_size(variant).forward_intermediates(x)] for variant in VARIANTS}
    assert shapes["a"] == [(2, 256, 56, 56), (2, 512, 28, 28), (2, 1024, 14, 14), (2, 2048, 7, 7)]
    assert all(found == shapes["a"] for found in shapes.values())
    assert paper_size("d")(x).shape == (2, 2048)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [7, 8, 9, 15])
def test_odd_sizes_are_rounded_up_on_both_ways_through_a_block(variant, size):
    out = bottleneck(8, 4, 2, variant)(torch.rand(2, 8, size, size))
    assert out.shape == (2, 16, -(-size // 2), -(-size // 2))


def test_the_border_of_an_odd_map_is_a_mean_of_its_own_pixels():
    pool = next(m for m in bottleneck(8, 4, 2, "d").shortcut if isinstance(m, nn.AvgPool2d))
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert_close(pool(x)[0, 0], torch.tensor([[2.0, 3.5], [6.5, 8.0]]))


@pytest.mark.parametrize(("variant", "share"), [("a", 0.25), ("b", 0.25), ("c", 0.25), ("d", 1.0)])
def test_the_share_of_positions_that_a_shortcut_sees(variant, share):
    x = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (bottleneck(8, 4, 2, variant).eval().shortcut(x) ** 2).sum().backward()
    assert (x.grad.abs().sum(1) > 0).double().mean() == share


@pytest.mark.parametrize(("variant", "share"), [("a", 0.25), ("b", 1.0), ("d", 1.0)])
def test_the_branch_of_b_sees_all_positions(variant, share):
    # with fewer channels all of a position may be cut by a ReLU
    block = bottleneck(8, 32, 2, variant).eval()
    x = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (block.branch(x) ** 2).sum().backward()
    assert (x.grad.abs().sum(1) > 0).double().mean() == share


def test_a_block_with_zero_gamma_is_relu_of_its_input():
    block = bottleneck(16, 4, 1, "b")
    assert not len(block.shortcut)
    x = torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(block(x), F.relu(x))
    nn.init.zeros_(block.last_scale)
    assert torch.equal(block(x), F.relu(x))


def test_convolutions_start_with_the_variance_of_their_outputs():
    """2 over the outputs and positions of the kernel, as He et al. (2015) draw them; not over the inputs."""
    with seeded(0):
        network = ResNet(3, 26, "d", 32)
    drawn = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000]
    assert any(m.out_channels != m.in_channels for m in drawn)
    for m in drawn:
        expected = (2 / (m.out_channels * m.weight[0, 0].numel())) ** 0.5
        assert float(m.weight.detach().std()) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("variant", ["a", "d"])
def test_with_zero_gamma_features_do_not_depend_on_the_branches(variant):
    for zero_gamma in (True, False):
        body = small(variant, zero_gamma=zero_gamma)
        before = body(X)
        for block in (m for m in body.modules() if isinstance(m, Bottleneck)):
            for layer in block.branch:
                if isinstance(layer, nn.Conv2d):
                    nn.init.normal_(layer.weight)
        assert torch.equal(body(X), before) == zero_gamma


def test_with_zero_gamma_the_scales_alone_learn_in_the_first_step():
    body = small("b", zero_gamma=True)
    (body(X) ** 2).sum().backward()
    blocks = [m for m in body.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == 8
    for block in blocks:
        assert not block.last_scale.any()
        assert block.last_scale.grad.any()
        for layer in block.branch:
            if isinstance(layer, nn.Conv2d):
                assert not layer.weight.grad.any()
    shortcuts = [layer for block in blocks for layer in block.shortcut if isinstance(layer, nn.Conv2d)]
    assert all(layer.weight.grad.any() for layer in shortcuts)


def test_intermediate_maps_end_in_the_features():
    body = small("c").eval()
    maps = body.forward_intermediates(X, [0, -1])
    assert [m.shape[1:] for m in maps] == [(32, 16, 16), (256, 2, 2)]
    assert torch.equal(body.forward_features(X), maps[1])
    assert torch.equal(body(X), maps[1].mean((2, 3)))
    assert body.get_submodule(body.stage_names[-1]) is body.stages[-1]
    with pytest.raises(ValueError, match=r"indices must be stages in \[-4, 3\]"):
        body.forward_intermediates(X, [4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, "depth must be one of 26, 50, 101, got 18"),
        ({"variant": "e"}, "variant must be one of a, b, c, d, got 'e'"),
        ({"width": 7}, "width must be a positive even number, got 7"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_a_recipe_builds_it_for_images_alone(small_digits, wine):
    network = build_model("resnet:depth=26,width=8,small=true,variant=d", small_digits)
    assert network(small_digits.floats(torch.arange(2))).shape == (2, 10)
    with pytest.raises(SpecError, match="resnet needs images, but the data are a table"):
        build_model("resnet", wine)
    with pytest.raises(SpecError, match="depth must be one of"):
        build_model("resnet:depth=18", small_digits)
