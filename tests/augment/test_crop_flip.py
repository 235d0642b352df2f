"""CropFlip: every output pixel is a pixel of its own image, or the padding."""

import pytest
import torch

from weathered.augment.crop_flip import CropFlip, _cut_gather, _cut_numpy, crop_flip
from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.facts import Traits, check
from weathered.core.procedure import Procedure
from weathered.core.rng import generator
from weathered.core.roles import Part


def images(size=64, channels=3, height=7, width=5, seed=0):
    """No two pixels of an image are equal, none is 0."""
    values = torch.rand(size, channels * height * width, generator=generator(seed, "images")).argsort(1) + 1
    return values.to(torch.uint8).view(size, channels, height, width)


def reference(x, padding, down, right, flip):
    out = torch.zeros_like(x)
    height, width = x.shape[2:]
    for b in range(len(x)):
        for i in range(height):
            for j in range(width):
                column = width - 1 - j if flip[b] else j
                source_row, source_column = i + int(down[b]) - padding, column + int(right[b]) - padding
                if 0 <= source_row < height and 0 <= source_column < width:
                    out[b, :, i, j] = x[b, :, source_row, source_column]
    return out


@pytest.mark.parametrize("cut", [_cut_numpy, _cut_gather])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_way_of_cutting_equals_the_definition(cut, padding, dtype):
    x = images().to(dtype)
    rng = generator(1, "draws")
    down, right = torch.randint(0, 2 * padding + 1, (2, len(x)), generator=rng)
    flip = torch.rand(len(x), generator=rng) < 0.5
    before = x.clone()
    assert torch.equal(cut(x, padding, down, right, flip), reference(x, padding, down, right, flip))
    assert torch.equal(x, before)


def test_all_offsets_and_both_directions_occur():
    x = torch.zeros(2000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    x[:, :, 2, 1] = 0.5
    out = CropFlip(padding=2)(Batch.of(x, torch.zeros(2000, dtype=torch.long)), generator(0, "crop")).x
    place = (out == 1).flatten(1).float()
    seen = place.argmax(1)[place.any(1)]
    assert set(seen.tolist()) == set(range(25))
    centre = out[:, 0, 2, 2] == 1
    mirrored = out[centre][:, 0, 2, 3] == 0.5
    assert 0.2 < mirrored.float().mean() < 0.8


def test_nothing_to_do_is_the_identity_in_another_tensor():
    x = images()
    batch = Batch.of(x, torch.arange(len(x)))
    out = CropFlip(padding=0, flip=False)(batch, generator(0, "crop"))
    assert torch.equal(out.x, x)
    assert out.x.data_ptr() != x.data_ptr()
    assert out.target is batch.target
    assert torch.equal(out.index, batch.index)


def test_same_draws_for_uint8_and_float_and_for_the_same_generator():
    x = images()
    labels = torch.arange(len(x))
    part = CropFlip(padding=2)
    first = part(Batch.of(x, labels), generator(3, "crop")).x
    assert torch.equal(first, part(Batch.of(x, labels), generator(3, "crop")).x)
    assert torch.equal(first.float(), part(Batch.of(x.float(), labels), generator(3, "crop")).x)
    assert not torch.equal(first, part(Batch.of(x, labels), generator(4, "crop")).x)


def test_gradient_passes_to_the_pixels_that_remain():
    x = torch.rand(4, 1, 6, 6, requires_grad=True)
    zeros = torch.zeros(4, dtype=torch.long)
    crop_flip(x, 2, zeros, zeros, zeros.bool()).sum().backward()
    expected = torch.zeros(6, 6)
    expected[:4, :4] = 1
    assert torch.equal(x.grad, expected.expand(4, 1, 6, 6))


class PastesBoxes(Part):
    traits = Traits(breaks={"uniform_pixels": "pastes a box of another image"})


def test_cropping_after_pasting_is_refused_but_mirroring_is_not():
    facts = {"image", "uniform_pixels"}
    with pytest.raises(Incompatible, match="CropFlip needs 'uniform_pixels'"):
        check(facts, [("transform", PastesBoxes()), ("transform", CropFlip())], Procedure())
    check(facts, [("transform", CropFlip()), ("transform", PastesBoxes())], Procedure())
    check(facts, [("transform", PastesBoxes()), ("transform", CropFlip(padding=0))], Procedure())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        CropFlip(padding=-1)
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\)"):
        crop_flip(torch.rand(3, 4), 1, torch.zeros(3).long(), torch.zeros(3).long(), torch.zeros(3).bool())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_an_empty_batch_stays_one(dtype):
    empty = Batch.of(torch.zeros(0, 3, 7, 5, dtype=dtype), torch.zeros(0).long())
    found = CropFlip()(empty, generator(0, "empty")).x
    assert found.shape == (0, 3, 7, 5)
    assert found.dtype == dtype
