"""ResizeMix: the copy is the whole partner made small, the rest stays, the label weighs the area."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.mixing.resizemix import ResizeMix, paste_small


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.rand(5, 3, 10, 14, generator=rng())
PARTNER = torch.tensor([1, 2, 3, 4, 0])


def test_the_copy_is_the_whole_partner_and_the_rest_stays():
    found = paste_small(X, PARTNER, (4, 6), (3, 5))
    small = F.interpolate(X[PARTNER], (4, 6), mode="bilinear", antialias=True)
    assert torch.equal(found[:, :, 3:7, 5:11], small)
    outside = torch.ones(10, 14, dtype=torch.bool)
    outside[3:7, 5:11] = False
    assert torch.equal(found[:, :, outside], X[:, :, outside])


def test_a_copy_of_the_whole_size_exchanges_images_and_labels():
    found = ResizeMix(1.0, 1.0)(Batch.of(X, torch.arange(5)), rng())
    partner = found.target.labels[1]
    assert_close(found.x, X[partner])
    assert bool((found.target.weights[0] == 0).all())


@pytest.mark.parametrize("seed", range(10))
def test_labels_weigh_the_area(seed):
    batch = Batch.of(torch.eye(6)[:, :, None, None].expand(6, 6, 9, 11).contiguous(), torch.arange(6))
    found = ResizeMix()(batch, rng(seed))
    assert_close(found.target.dense(6), found.x.mean((2, 3)), atol=1e-6, rtol=0)


def test_videos_and_layouts_are_kept():
    video = torch.rand(3, 2, 3, 8, 8, generator=rng())
    found = paste_small(video, torch.tensor([1, 2, 0]), (3, 3), (0, 5))
    by_frame = paste_small(video[:, 1], torch.tensor([1, 2, 0]), (3, 3), (0, 5))
    assert_close(found[:, 1], by_frame)
    last = X.contiguous(memory_format=torch.channels_last)
    mixed = paste_small(last, PARTNER, (4, 6), (3, 5))
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert_close(mixed, paste_small(X, PARTNER, (4, 6), (3, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_is_resized_and_kept(dtype):
    found = paste_small(X.to(dtype), PARTNER, (4, 6), (3, 5))
    assert found.dtype == dtype
    assert_close(found.float(), paste_small(X, PARTNER, (4, 6), (3, 5)), atol=0.01, rtol=0)
    assert torch.equal(found[:, :, :3], X.to(dtype)[:, :, :3])
    assert ResizeMix()(Batch.of(X.to(dtype), torch.arange(5)), rng()).x.dtype == dtype


def test_sides_follow_their_range_and_places_reach_every_border():
    """Two images, black and white: what is white in the black one is the copy."""
    black = torch.stack([torch.zeros(1, 40, 20), torch.ones(1, 40, 20)])
    heights, tops, lefts = [], [], []
    for seed in range(400):
        found = ResizeMix(0.3, 0.6)(Batch.of(black, torch.arange(2)), rng(seed)).x[0, 0]
        rows, columns = found.amax(1).nonzero()[:, 0], found.amax(0).nonzero()[:, 0]
        if not len(rows):
            continue
        height, width = len(rows), len(columns)
        assert abs(height / 40 - width / 20) <= 0.5 / 20 + 0.5 / 40
        heights.append(height)
        tops.append((int(rows[0]), int(40 - 1 - rows[-1])))
        lefts.append((int(columns[0]), int(20 - 1 - columns[-1])))
    assert (min(heights), max(heights)) == (12, 24)
    assert sum(heights) / len(heights) == pytest.approx(18, abs=0.8)
    for ends in (tops, lefts):
        assert [min(end) for end in zip(*ends, strict=True)] == [0, 0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not lie inside"):
        paste_small(X, PARTNER, (4, 6), (7, 5))
    with pytest.raises(ValueError, match="floating-point"):
        paste_small(X.byte(), PARTNER, (4, 6), (0, 0))
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        ResizeMix(0.5, 0.2)
    with pytest.raises(ValueError, match="probability"):
        ResizeMix(probability=-0.1)
