"""CutMix: where its boxes lie, how large they are, and how often each pixel is cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered.core.rng import draw_beta, generator
from weathered.mixing.cutmix import Box, draw_box

SIZES = st.tuples(st.integers(1, 17), st.integers(1, 17))


def ends(box: Box, i: int) -> tuple[int, ...]:
    return tuple(int(end[i]) if isinstance(end, torch.Tensor) else end for end in box)


@given(SIZES, st.integers(0, 10**6), st.floats(0, 1))
def test_box_stays_inside_and_never_grows(size, seed, lam):
    shares = torch.full((20,), lam, dtype=torch.float64)
    box = draw_box(size, shares, generator(seed))
    top, bottom, left, right = (torch.as_tensor(end) for end in box)
    assert ((top >= 0) & (top <= bottom) & (bottom <= size[0])).all()
    assert ((left >= 0) & (left <= right) & (right <= size[1])).all()
    own = 1 - torch.as_tensor(box.share(size))
    assert ((own >= lam - 1e-12) & (own <= 1)).all()


@given(SIZES, st.integers(0, 10**6), st.floats(0, 1))
def test_one_box_and_boxes_per_sample_follow_one_rule(size, seed, lam):
    one = draw_box(size, lam, generator(seed))
    many = draw_box(size, torch.tensor([lam], dtype=torch.float64), generator(seed))
    assert ends(one, 0) == ends(many, 0)
    assert one.share(size) == float(torch.as_tensor(many.share(size))[0])


def test_unclipped_sides_are_even():
    lam = draw_beta(1.0, generator(0), (5000,))
    box = draw_box((33, 20), lam, generator(1))
    for start, end, length in ((box.top, box.bottom, 33), (box.left, box.right, 20)):
        start, end = torch.as_tensor(start), torch.as_tensor(end)
        free = (start > 0) & (end < length)
        nominal = (length * (1 - lam).sqrt()).long()
        assert free.sum() > 500
        assert torch.equal((end - start)[free], 2 * (nominal // 2)[free])
        assert (nominal[free] % 2 == 1).any()


@pytest.mark.parametrize(("pixels", "mean", "empty"), [(8, 0.767, 0.0625), (32, 0.701, 0.0039), (224, 0.682, None)])
def test_distribution_of_the_own_share(pixels, mean, empty):
    lam = draw_beta(1.0, generator(0, "lam"), (400_000,))
    own = 1 - torch.as_tensor(draw_box((pixels, pixels), lam, generator(0, "box")).share((pixels, pixels)))
    assert float(own.mean()) == pytest.approx(mean, abs=0.003)
    if empty is not None:
        assert float((lam > 1 - (2 / pixels) ** 2).double().mean()) == pytest.approx(empty, abs=0.001)
        assert float((own == 1).double().mean()) == pytest.approx(empty, abs=0.001)
    assert (own > 0).all()


def test_whole_image_goes_only_with_a_central_full_box():
    box = draw_box((8, 8), torch.zeros(4000, dtype=torch.float64), generator(0))
    whole = torch.as_tensor(box.share((8, 8))) == 1
    assert float(whole.double().mean()) == pytest.approx(1 / 64, abs=0.01)
    assert (torch.as_tensor(box.top)[whole] == 0).all()
    assert (torch.as_tensor(box.right)[whole] == 8).all()


def test_pixels_are_cut_more_often_towards_the_centre():
    size, count = 16, 200_000
    box = draw_box((size, size), draw_beta(1.0, generator(0), (count,)), generator(1))
    pixel = torch.arange(size)
    top, bottom, left, right = (torch.as_tensor(end)[:, None] for end in box)
    rows, columns = (pixel >= top) & (pixel < bottom), (pixel >= left) & (pixel < right)
    diagonal = (rows & columns).double().mean(0)
    # the two pixels nearest to the centre differ by less than the noise of the draws
    assert (diagonal[: size // 2 - 1].diff() > 0.01).all()
    assert (diagonal[size // 2 :].diff() < -0.01).all()
