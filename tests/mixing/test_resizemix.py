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


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not lie inside"):
        paste_small(X, PARTNER, (4, 6), (7, 5))
    with pytest.raises(ValueError, match="floating-point"):
        paste_small(X.byte(), PARTNER, (4, 6), (0, 0))
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        ResizeMix(0.5, 0.2)
    with pytest.raises(ValueError, match="probability"):
        ResizeMix(probability=-0.1)
