"""RandomErasing: one rectangle an image, of the stated sizes, anywhere it fits; all else stays."""

import pytest
import torch

from weathered.augment.random_erasing import RandomErasing, draw_sides, erase, inside
from weathered.core.batch import Batch
from weathered.core.rng import generator

SIZE = 4000


def erased(height=40, width=30, size=SIZE, dtype=torch.float32, **arguments):
    """Where black images become white."""
    x = torch.zeros(size, 2, height, width, dtype=dtype)
    out = RandomErasing(fill="white", **arguments)(Batch.of(x, torch.zeros(size).long()), generator(0, "erase")).x
    top = 255 if dtype == torch.uint8 else 1
    assert set(out.unique().tolist()) <= {0, top}
    assert torch.equal(out[:, 0], out[:, 1])
    return out[:, 0] == top


def sides(where):
    return where.any(2).sum(1), where.any(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_marks_are_one_rectangle_with_the_stated_area_and_shape(dtype):
    where = erased(probability=1.0, dtype=dtype)
    tall, wide = sides(where)
    assert torch.equal(tall * wide, where.flatten(1).sum(1))
    for marks in (where.any(2), where.any(1)):
        assert int((marks[:, 1:] & ~marks[:, :-1]).sum(1).max()) <= 1
        starts = (marks[:, 1:] & ~marks[:, :-1]).sum(1) + marks[:, 0]
        assert bool((starts == 1).all())
    assert bool((tall >= 1).all() and (wide >= 1).all())
    area = (tall * wide).double() / 1200
    # sides are rounded to whole pixels, so the ends are a little further out
    assert 0.015 < float(area.min()) < 0.03
    assert 0.38 < float(area.max()) < 0.43
    assert float((tall / wide).max()) < 1 / 0.3 * 1.3
    assert float((tall / wide).min()) > 0.3 / 1.3


def test_shares_and_shapes_are_uniform():
    """On images so large that all fits, area and height over width have the means of their ranges."""
    tall, wide = draw_sides(20_000, (1000, 1000), 0.2, 0.3, generator(0, "sides"))
    assert float((tall * wide / 1e6).mean()) == pytest.approx(0.11, abs=0.002)
    assert float((tall / wide).double().mean()) == pytest.approx((0.3 + 1 / 0.3) / 2, abs=0.03)
    # a logarithm that is uniform would give half below 1; a uniform one gives 0.7 of 3.03
    assert float((tall < wide).double().mean()) == pytest.approx(0.7 / (1 / 0.3 - 0.3), abs=0.015)


def test_every_place_where_it_fits_is_as_likely():
    where = erased(height=6, width=6, size=20_000, probability=1.0, area=0.02)
    tall, wide = sides(where)
    one = (tall == 1) & (wide == 1)
    counts = where[one].double().sum(0)
    expected = float(one.sum()) / 36
    # 35 degrees of freedom: chance one in a million lies near 91
    assert float(((counts - expected) ** 2 / expected).sum()) < 91


def test_small_images_lose_at_least_a_pixel():
    assert bool(erased(height=3, width=3, probability=1.0, area=0.05).flatten(1).any(1).all())


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probability_is_the_share_of_images(probability):
    share = float(erased(probability=probability).flatten(1).any(1).double().mean())
    assert abs(share - probability) <= (0.03 if 0 < probability < 1 else 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_random_values_are_uniform_and_all_else_stays(dtype):
    x = torch.full((500, 3, 16, 16), 7, dtype=dtype)
    if dtype != torch.uint8:
        x = x / 255
    out = RandomErasing(probability=1.0)(Batch.of(x, torch.zeros(500).long()), generator(0, "erase")).x
    new = out[out != x].double() * (1 if dtype == torch.uint8 else 255)
    assert bool((out == x).all(1).any())
    assert float(new.mean()) == pytest.approx(128, abs=1.5)
    assert float(new.std()) == pytest.approx(73.9, abs=1.5)
    assert out.dtype == dtype
    assert float(new.min()) == 0
    assert float(new.max()) == pytest.approx(255)


def test_each_pixel_and_channel_has_a_value_of_its_own():
    x = torch.zeros(200, 3, 16, 16)
    out = RandomErasing(probability=1.0)(Batch.of(x, torch.zeros(200).long()), generator(0, "erase")).x
    red, green, _ = (out[:, channel][out.any(1)] for channel in range(3))
    assert abs(float(torch.corrcoef(torch.stack([red, green]))[0, 1])) < 0.05
    assert len(out.unique(dim=0)) == 200


def test_black_and_white_are_one_value():
    x = torch.full((50, 3, 9, 9), 0.5)
    for fill, value in (("black", 0.0), ("white", 1.0)):
        out = RandomErasing(1.0, fill=fill)(Batch.of(x, torch.zeros(50).long()), generator(0, "erase")).x
        assert set(out.unique().tolist()) == {0.5, value}


def test_a_batch_is_its_samples_alone():
    x, rng = torch.rand(6, 3, 8, 9, generator=generator(0, "x")), generator(1, "where")
    top, left, tall, wide = torch.randint(1, 5, (4, 6), generator=rng)
    where = inside((8, 9), top, left, tall, wide)
    fill = torch.rand(int(where.sum()) * 3, generator=rng)
    together = erase(x, where, fill)
    ends = (where.flatten(1).sum(1) * 3).cumsum(0).tolist()
    for i, end in enumerate(ends):
        begin = ends[i - 1] if i else 0
        assert torch.equal(together[[i]], erase(x[[i]], where[[i]], fill[begin:end]))
        box = slice(int(top[i]), int(top[i] + tall[i])), slice(int(left[i]), int(left[i] + wide[i]))
        assert torch.equal(together[i, :, *box].flatten(), fill[begin:end])


@pytest.mark.parametrize("shape", [(5, 60), (60, 5), (12, 12)])
def test_rectangles_fit_whole(shape):
    """None is cut at a side: those that do not fit are drawn anew, or left out."""
    tall, wide = draw_sides(SIZE, shape, 0.4, 0.3, generator(0, "sides"))
    assert int(tall.max()) <= shape[0]
    assert int(wide.max()) <= shape[1]
    assert torch.equal(tall == 0, wide == 0)
    assert float((tall > 0).double().mean()) > 0.75


@pytest.mark.parametrize("shape", [(1, 200), (200, 1)])
def test_an_image_too_thin_stays(shape):
    x = torch.zeros(100, 1, *shape)
    out = RandomErasing(1.0, ratio=1.0, fill="white")(Batch.of(x, torch.zeros(100).long()), generator(0, "erase")).x
    assert torch.equal(out, x)


def test_wrong_arguments():
    for name, value, message in (
        ("probability", 1.5, r"probability must be in \[0, 1\], got 1.5"),
        ("area", 0.01, r"area must be in \[0.02, 1\], got 0.01"),
        ("area", 1.1, r"area must be in \[0.02, 1\], got 1.1"),
        ("ratio", 0.0, r"ratio must be in \(0, 1\], got 0.0"),
        ("ratio", 2.0, r"ratio must be in \(0, 1\], got 2.0"),
        ("fill", "mean", "fill must be random, black or white, got 'mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomErasing(**{name: value})
    with pytest.raises(ValueError, match=r"erasing needs images \(B, C, H, W\) and marks \(B, H, W\)"):
        erase(torch.rand(2, 1, 4, 4), torch.zeros(2, 4, 5).bool(), torch.tensor(0.0))
