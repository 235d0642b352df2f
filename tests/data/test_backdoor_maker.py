"""The backdoor maker: what is stamped, relabelled and kept."""

import pytest
import torch

from weathered.core.errors import DataError
from weathered.data.makers.backdoor import Backdoor
from weathered.data.patch import near_corner


def made(data, rate=0.05, seed=0, **options):
    return Backdoor(rate, **options)(data, torch.Generator().manual_seed(seed))


def test_a_share_of_other_classes_is_stamped_and_labelled_as_the_target(digits):
    found, rows = made(digits, 0.05, target=3), torch.arange(len(digits))
    changed = found.labels != digits.labels
    assert int(changed.sum()) == int(0.05 * len(digits))
    assert bool((found.labels[changed] == 3).all())
    assert found.clean_labels is not None
    assert torch.equal(found.clean_labels, digits.labels)
    images, before = found.inputs.fetch(rows), digits.inputs.fetch(rows)
    assert images.dtype == torch.uint8
    assert torch.equal(images[~changed], before[~changed])
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[5:7, 5:7] = True
    assert bool((images[changed][..., corner] == 255).all())
    assert torch.equal(images[changed][..., ~corner], before[changed][..., ~corner])
    assert "89 of 1797 labels were changed" in found.notes[-1]


def test_selected_rows_keep_their_stamps_and_the_data_stay_as_they_were(digits):
    before = digits.inputs.fetch(torch.arange(len(digits))).clone()
    found = made(digits, 0.3)
    rows = torch.randperm(len(digits), generator=torch.Generator().manual_seed(1))[:100]
    assert torch.equal(found.select(rows).inputs.fetch(torch.arange(100)), found.inputs.fetch(rows))
    assert torch.equal(digits.inputs.fetch(torch.arange(len(digits))), before)


def test_rate_zero_changes_nothing_and_draws_follow_the_seed(digits):
    assert torch.equal(made(digits, 0.0).labels, digits.labels)
    assert torch.equal(made(digits, seed=1).labels, made(digits, seed=1).labels)
    assert not torch.equal(made(digits, seed=1).labels, made(digits, seed=2).labels)


def test_what_cannot_be_stamped_is_refused(digits, wine):
    with pytest.raises(ValueError, match="rate must be"):
        Backdoor(1.5)
    with pytest.raises(ValueError, match="target must be"):
        Backdoor(0.1, target=-1)
    with pytest.raises(ValueError, match="size must be"):
        Backdoor(0.1, size=0)
    with pytest.raises(DataError, match="a backdoor needs images"):
        made(wine)
    with pytest.raises(DataError, match=r"target must be in \[0, 9\] for 10 classes, got 10"):
        made(digits, target=10)
    with pytest.raises(DataError, match="does not fit images of 8 x 8"):
        made(digits, size=8)
    with pytest.raises(DataError, match="needs 1761 rows of other classes than '0', there are 1619; lower the rate"):
        made(digits, 0.98)


def test_a_patch_near_the_corner_leaves_one_pixel(digits):
    patch = near_corner(torch.ones(3, 2, 4), (3, 9, 11))
    assert (patch.top, patch.left) == (6, 6)
    with pytest.raises(ValueError, match="does not fit images of shape"):
        near_corner(torch.ones(1, 2, 2), (3, 9, 9))
