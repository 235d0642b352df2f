"""A patch changes its own pixels, and no others."""

import pytest
import torch

from weathered.data.patch import Patch


def test_stamping_changes_the_covered_pixels_alone_and_twice_is_once():
    images = torch.rand(5, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    patch = Patch(torch.full((3, 2, 3), 1.5), 4, 6)
    stamped, mask = patch.stamp(images), patch.covers(8, 9)
    assert int(mask.sum()) == 6
    assert bool((stamped[..., mask] == 1.5).all())
    assert torch.equal(stamped[..., ~mask], images[..., ~mask])
    assert torch.equal(patch.stamp(stamped), stamped)
    assert torch.equal(torch.cat([patch.stamp(images[:2]), patch.stamp(images[2:])]), stamped)


def test_bytes_are_cut_to_the_range_and_rounded():
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    pattern = torch.tensor([[[0.5, 2.0], [-1.0, 1.0]]])
    assert Patch(pattern, 0, 2).stamp(images)[0, 0, :2, 2:].tolist() == [[128, 255], [0, 255]]


@pytest.mark.parametrize(("top", "left", "channels"), [(3, 0, 1), (0, 3, 1), (0, 0, 2)])
def test_a_patch_that_does_not_fit_is_refused(top, left, channels):
    with pytest.raises(ValueError, match="does not fit images"):
        Patch(torch.ones(channels, 2, 2), top, left).stamp(torch.zeros(1, 1, 4, 4))


def test_patterns_without_pixels_and_negative_places_are_refused():
    with pytest.raises(ValueError, match="at least one pixel"):
        Patch(torch.ones(1, 0, 2), 0, 0)
    with pytest.raises(ValueError, match="top and left"):
        Patch(torch.ones(1, 1, 1), -1, 0)
