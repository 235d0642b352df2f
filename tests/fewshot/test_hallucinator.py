"""The generator: shapes for any map, order of rows, permutations, ranges, and the loss."""

import pytest
import torch
from torch.testing import assert_close

from weathered.fewshot.hallucinator import (
    ACTIVATIONS,
    Hallucinator,
    class_prototypes,
    growing_sizes,
    reconstruction_loss,
)
from weathered.nn.network import seeded


def network(shape=(6, 5, 4), output="relu") -> Hallucinator:
    with seeded(0):
        return Hallucinator(shape, output)


@pytest.mark.parametrize(
    "shape",
    [(8, 7, 7), (8, 4, 4), (4, 5, 3), (4, 2, 2), (3, 1, 6), (1, 8, 8), (5, 14, 11), (8,), (1,)],
)
def test_samples_have_the_shape_of_their_prototypes(shape):
    made = network(shape)(torch.rand(3, *shape), torch.randn(2, 2 * shape[0]))
    assert made.shape == (3, 2, *shape)
    stacked = network(shape)(torch.rand(4, 3, *shape), torch.randn(4, 2, 2 * shape[0]))
    assert stacked.shape == (4, 3, 2, *shape)


def test_the_sizes_of_the_source_come_out():
    assert growing_sizes(7) == [1, 3, 5, 7]
    assert all(growing_sizes(size)[-1] == size for size in range(1, 40))
    assert all(
        b >= a for size in range(1, 40) for a, b in zip(growing_sizes(size), growing_sizes(size)[1:], strict=False)
    )
    found = {name: tuple(value.shape) for name, value in network((512, 7, 7)).named_parameters()}
    assert found["conditioner.0.weight"] == (512, 512, 3, 3)
    assert found["conditioner.2.weight"] == (256, 512, 3, 3)
    assert found["conditioner.4.weight"] == (1024, 6400)
    assert found["from_noise.1.weight"] == found["from_code.1.weight"] == (1024, 512, 3, 3)
    assert found["rest.1.weight"] == found["rest.3.weight"] == (512, 512, 3, 3)


def test_noise_and_code_enter_one_transposed_convolution():
    """As a layer on their concatenation, which is how the source writes it, with its Xavier bound."""
    made, prototypes, noise = network((6, 7, 7)), torch.rand(3, 6, 7, 7), torch.randn(2, 12)
    layer = torch.nn.ConvTranspose2d(24, 6, 3)
    layer.weight.data = torch.cat([made.from_noise[1].weight, made.from_code[1].weight])
    layer.bias.data = made.from_code[1].bias.data
    code = made.conditioner(prototypes)
    both = torch.cat([noise.expand(3, 2, 12), code[:, None].expand(3, 2, 12)], 2).flatten(0, 1)
    expected = torch.relu(made.rest(layer(both[..., None, None])))
    assert_close(made(prototypes, noise).flatten(0, 1), expected, atol=1e-6, rtol=1e-5)
    bound = (6 / (24 * 9 + 6 * 9)) ** 0.5
    assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


def test_permuting_classes_permutes_samples_and_all_share_the_noise():
    made, prototypes, noise = network(), torch.rand(4, 6, 5, 4), torch.randn(3, 12)
    order = torch.tensor([2, 0, 3, 1])
    samples = made(prototypes, noise)
    assert_close(made(prototypes[order], noise), samples[order], atol=1e-6, rtol=1e-5)
    same = made(prototypes[:1].expand(4, -1, -1, -1), noise)
    assert_close(same, same[:1].expand_as(same), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(samples[:, 0], samples[:, 1])


def test_episodes_are_made_apart():
    made, prototypes, noise = network(), torch.rand(2, 4, 6, 5, 4), torch.randn(2, 3, 12)
    each = torch.stack([made(p, z) for p, z in zip(prototypes, noise, strict=True)])
    assert_close(made(prototypes, noise), each, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6,)])
@pytest.mark.parametrize("output", list(ACTIVATIONS))
def test_the_range_is_that_of_the_last_activation(shape, output):
    made = network(shape, output)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
        samples = made(torch.randn(5, *shape), 3 * torch.randn(20, 12))
    low, high = {"relu": (0, None), "softplus": (0, None), "sigmoid": (0, 1), "linear": (None, None)}[output]
    if low is None:
        assert float(samples.min()) < 0
        return
    assert float(samples.min()) >= low
    assert (float(samples.max()) <= high) if high else bool((samples > 0).any())


def test_the_loss_is_zero_exactly_for_copies_and_the_reconstruction_error_without_noise():
    prototypes = torch.rand(4, 6, 5, 4)
    copies = prototypes[:, None].expand(-1, 3, -1, -1, -1).clone()
    assert float(reconstruction_loss(copies, prototypes)) == 0
    copies[2, 1, 0, 0, 0] += 0.5
    assert float(reconstruction_loss(copies, prototypes)) == pytest.approx(0.25 / copies.numel())
    rebuilt = torch.rand(4, 6, 5, 4)
    same = rebuilt[:, None].expand(-1, 7, -1, -1, -1)
    assert_close(reconstruction_loss(same, prototypes), torch.nn.functional.mse_loss(rebuilt, prototypes))


def test_a_prototype_is_the_mean_of_its_rows():
    support = torch.rand(2, 3, 4, 6, 5, 4)
    one = support[:, :, :1]
    assert torch.equal(class_prototypes(one), one[:, :, 0])
    twice = support.repeat_interleave(2, 2)
    assert_close(class_prototypes(twice), class_prototypes(support), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(6, 5), (0, 5, 5), ()])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape must be \(c,\) or \(c, h, w\)"):
        Hallucinator(shape, "relu")


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"output must be one of relu, softplus, sigmoid, linear, got 'tanh'"):
        Hallucinator((3,), "tanh")
