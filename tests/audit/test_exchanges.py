"""Exchanges between images: regions, colours, cells in another order; donors of another class."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.audit.exchanges import (
    Region,
    draw_donors,
    exchanged,
    grid_regions,
    in_grey,
    shuffled,
    with_colour_of,
)
from weathered.core.errors import SpecError
from weathered.core.rng import generator


def images(size: int = 6, channels: int = 3, height: int = 8, width: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, channels, height, width, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_a_donor_is_of_another_group(seed, classes):
    groups = torch.randint(classes, (40,), generator=torch.Generator().manual_seed(seed))
    groups[:2] = torch.tensor([0, 1])
    donors = draw_donors(groups, generator(seed, "donors"))
    assert bool((groups[donors] != groups).all())


def test_donors_are_uniform_over_all_others():
    groups = torch.tensor([0, 0, 1, 2, 2, 1, 0, 2]).repeat(500)
    donors = draw_donors(groups, generator(0, "donors"))[groups == 0] % 8
    counts = donors.bincount(minlength=8)
    assert counts[groups[:8] == 0].tolist() == [0, 0, 0]
    # 1,500 draws over five places: 300 each, standard deviation 15
    assert bool(((counts[groups[:8] != 0] - 300).abs() < 80).all())


def test_one_group_alone_has_no_donors():
    with pytest.raises(ValueError, match="takes all test images for one class"):
        draw_donors(torch.zeros(5).long(), generator(0, "donors"))


def test_a_region_comes_from_the_donor_and_all_else_stays():
    x, y, region = images(), images(seed=1), Region(2, 5, 3, 4)
    before = x.clone()
    out = exchanged(x, y, region)
    inside = torch.zeros(8, 9, dtype=torch.bool)
    inside[2:5, 5:9] = True
    assert torch.equal(out[..., inside], y[..., inside])
    assert torch.equal(out[..., ~inside], x[..., ~inside])
    assert torch.equal(x, before)
    assert torch.equal(exchanged(x, y, Region(0, 0, 8, 9)), y)


@given(st.integers(4, 33), st.integers(4, 33), st.integers(2, 4))
def test_cells_tile_the_image_and_squares_are_at_most_about_a_quarter(height, width, grid):
    regions = grid_regions(height, width, grid)
    covered = torch.zeros(height, width)
    for region in regions[: grid * grid]:
        covered[region.top : region.top + region.height, region.left : region.left + region.width] += 1
    assert bool((covered == 1).all())
    assert len(regions) == grid**2 + ((grid - 1) ** 2 if grid >= 4 else 0)
    for region in regions:
        assert region.height <= height // 2 + 1
        assert region.width <= width // 2 + 1


def test_shuffling_moves_whole_cells_and_keeps_every_pixel():
    x = torch.arange(2 * 9 * 10).view(1, 2, 9, 10).float().repeat(50, 1, 1, 1)
    out = shuffled(x, 4, generator(0, "cells"))
    assert torch.equal(out.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    # the last row and the last two columns are left over
    assert torch.equal(out[..., 8:, :], x[..., 8:, :])
    assert torch.equal(out[..., 8:], x[..., 8:])
    cells = {tuple(x[0, :, r : r + 2, c : c + 2].flatten().tolist()) for r in (0, 2, 4, 6) for c in (0, 2, 4, 6)}
    assert {
        tuple(out[7, :, r : r + 2, c : c + 2].flatten().tolist()) for r in (0, 2, 4, 6) for c in (0, 2, 4, 6)
    } == cells
    assert len(out.flatten(1).unique(dim=0)) == 50
    assert torch.equal(out, shuffled(x, 4, generator(0, "cells")))


def test_a_picture_in_one_colour_takes_the_donors_colour():
    drawn, other = images(4, 1), images(4, 1, seed=1)
    red, green = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0, 1.0, 0]).view(1, 3, 1, 1)
    assert_close(with_colour_of(drawn * red, other * green), drawn * green)
    assert_close(with_colour_of(drawn * red, other * red), drawn * red)
    grey = drawn.expand(-1, 3, -1, -1)
    assert_close(with_colour_of(grey, other.expand(-1, 3, -1, -1)), grey)
    assert_close(in_grey(drawn * red), (drawn / 3).expand(-1, 3, -1, -1))
    black = torch.zeros(1, 3, 8, 9)
    assert_close(with_colour_of(black, other[:1] * red), black)
    assert torch.isfinite(with_colour_of(drawn[:1] * red, black)).all()


def test_brightness_stays_where_nothing_is_cut():
    x, y = 0.4 + 0.2 * images(), 0.4 + 0.2 * images(seed=1)
    out = with_colour_of(x, y)
    assert_close(out.mean(1), x.mean(1))
    assert_close(out.mean((2, 3)) / out.mean((1, 2, 3))[:, None], y.mean((2, 3)) / y.mean((1, 2, 3))[:, None])


def test_regions_are_read_strictly():
    assert Region.parse(" 1,2, 3,4") == Region(1, 2, 3, 4)
    assert str(Region(1, 2, 3, 4)) == "1,2,3,4"
    for wrong in ("1,2,3", "1,2,3,4,5", "a,2,3,4", "-1,2,3,4", "1.0,2,3,4", ""):
        with pytest.raises(SpecError, match="a cue is top,left,height,width"):
            Region.parse(wrong)
    with pytest.raises(SpecError, match="from 1 on"):
        Region.parse("0,0,0,3")
    with pytest.raises(SpecError, match="a grid of 9 does not fit images of 8 x 9"):
        shuffled(images(), 9, generator(0, "cells"))
