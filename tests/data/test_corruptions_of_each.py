"""Corruptions beside the fifteen, and a kind and severity for each image."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from weathered.core.errors import SpecError
from weathered.core.rng import generator
from weathered.data.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt, corrupt_each
from weathered.data.corruptions.common import fractal
from weathered.data.corruptions.extra import SATURATIONS, SPECKLE_DEVIATIONS
from weathered.data.corruptions.noise import GAUSSIAN_DEVIATIONS
from weathered.procedures.cnc_ood import KINDS

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 21, 34)]
NOISE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


def clouds(batch=8, channels=3, height=32, width=32, seed=0):
    """Smooth images that do not fill the range."""
    like = torch.zeros(batch * channels, 1, height, width)
    fields = fractal(like, generator(seed, "clouds"), decay=0.6).view(batch, channels, height, width)
    return 0.1 + 0.7 * fields


def test_the_fifteen_stay_fifteen():
    assert len(CORRUPTIONS) == 15
    assert not set(CORRUPTIONS) & set(EXTRA_CORRUPTIONS)
    assert set(KINDS) <= {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
    assert len(set(KINDS)) == 15


@pytest.mark.parametrize("kind", EXTRA_CORRUPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_range_and_draws_and_the_input_stays(kind, shape):
    x = clouds(4, *shape)
    before = x.clone()
    for severity in (1, 5):
        out = corrupt(x, kind, severity, generator(0, kind))
        assert out.shape == x.shape
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(x, before)
        assert torch.equal(out, x) == (kind == "saturate" and shape[0] == 1)
        assert torch.equal(out, corrupt(x, kind, severity, generator(0, kind)))
        other = corrupt(x, kind, severity, generator(1, kind))
        assert torch.equal(out, other) == (kind != "speckle_noise")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saturate"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_the_mean_absolute_change_grows_with_severity(kind, shape):
    x = clouds(32, *shape)
    changes = [float((corrupt(x, kind, s, generator(0, kind)) - x).abs().mean()) for s in range(1, 6)]
    assert changes[0] > 1e-5
    assert all(later > earlier for earlier, later in itertools.pairwise(changes)), changes


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("severity", [1, 5])
def test_noise_keeps_the_mean_away_from_the_ends(kind, severity):
    x = torch.full((100, 3, 32, 32), 0.5)
    change = corrupt(x, kind, severity, generator(0, "noise")) - x
    deviation = float(change.std())
    assert deviation > 0.01
    assert abs(float(change.mean())) < 3 * deviation / x.numel() ** 0.5


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_speckle_is_as_strong_as_the_pixel_is_bright(severity):
    x = torch.tensor([0.0, 0.2, 0.4])[:, None, None, None].expand(3, 1, 200, 200)
    noise = corrupt(x, "speckle_noise", severity, generator(0, "speckle")) - x
    assert not noise[0].any()
    for row, value in ((1, 0.2), (2, 0.4)):
        assert float(noise[row].std()) == pytest.approx(SPECKLE_DEVIATIONS[severity - 1] * value, rel=0.02)


@pytest.mark.parametrize("kind", ["gaussian_blur", "defocus_blur", "glass_blur"])
@pytest.mark.parametrize("severity", [1, 5])
def test_blur_keeps_the_mean_and_lowers_the_variance(kind, severity):
    x = clouds(16)
    out = corrupt(x, kind, severity, generator(0, kind))
    assert_close(out.mean((2, 3)), x.mean((2, 3)), atol=1e-2, rtol=0)
    assert bool((out.var((2, 3)) < x.var((2, 3))).all())


def test_gaussian_blur_spreads_a_point_by_its_deviation():
    x = torch.zeros(1, 1, 129, 129)
    x[..., 64, 64] = 1
    out = corrupt(x, "gaussian_blur", 5, generator(0, "g"))[0, 0]
    place = torch.arange(129) - 64.0
    sigma = 0.03125 * 129
    assert float(out.sum()) == pytest.approx(1, abs=1e-4)
    # cut at 3 sigma, and split over pixels, which adds up to 1/4
    assert 0.96 * sigma**2 < float((out * place.square()).sum()) < sigma**2 + 0.25
    assert_close(out, out.T, atol=1e-6, rtol=0)
    assert_close(out, out.flip(0), atol=1e-6, rtol=0)


def saturation(x):
    return (x.amax(1) - x.amin(1)) / x.amax(1)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_saturate_changes_saturation_alone(severity):
    factor, shift = SATURATIONS[severity - 1]
    x = clouds()
    out = corrupt(x, "saturate", severity, generator(0, "s"))
    assert_close(out.amax(1), x.amax(1))
    assert_close(saturation(out), (factor * saturation(x) + shift).clamp(0, 1), atol=1e-4, rtol=0)
    # hue: where a channel lies between the least and the largest
    place, before = (
        (y - y.amin(1, keepdim=True)) / (y.amax(1, keepdim=True) - y.amin(1, keepdim=True)) for y in (out, x)
    )
    coloured = (saturation(x) > 0.05)[:, None].expand_as(x)
    assert_close(place[coloured], before[coloured], atol=1e-3, rtol=0)
    grey = clouds(channels=1).expand(-1, 3, -1, -1)
    assert torch.equal(corrupt(grey, "saturate", severity, generator(0, "s")), grey)


@given(st.integers(0, 40), st.integers(0, 1000))
def test_each_image_gets_its_own_kind_and_severity(size, seed):
    """Of kinds that draw nothing each image is what it would be alone."""
    names = ("contrast", "brightness", "zoom_blur")
    rng = generator(seed, "each")
    kind, severity = torch.randint(3, (size,), generator=rng), torch.randint(6, (size,), generator=rng)
    x = clouds(size, 1, 8, 8) if size else torch.zeros(0, 1, 8, 8)
    before = x.clone()
    out = corrupt_each(x, names, kind, severity, rng)
    assert torch.equal(x, before)
    assert out.shape == x.shape
    for i in range(size):
        alone = x[i : i + 1]
        if severity[i]:
            alone = corrupt(alone, names[kind[i]], int(severity[i]), rng)
        assert_close(out[i], alone[0], atol=1e-6, rtol=0)


def test_draws_differ_between_images_of_one_kind_and_repeat_with_the_generator():
    x = torch.full((200, 1, 16, 16), 0.5)
    kind, severity = torch.arange(200) % 2, 1 + torch.arange(200) % 5
    names = ("gaussian_noise", "contrast")
    out = corrupt_each(x, names, kind, severity, generator(0, "d"))
    assert torch.equal(out, corrupt_each(x, names, kind, severity, generator(0, "d")))
    noisy = out[kind == 0]
    assert len({tuple(row) for row in noisy.flatten(1)[:, :4].tolist()}) == 100
    for level in range(1, 6):
        deviation = float((noisy[severity[kind == 0] == level] - 0.5).std())
        assert deviation == pytest.approx(GAUSSIAN_DEVIATIONS[level - 1], rel=0.05)
    assert_close(out[kind == 1], x[kind == 1])


def test_the_layout_and_dtype_of_images_do_not_matter():
    x = clouds(6)
    kind, severity = torch.arange(6) % 3, torch.arange(6)
    names = ("contrast", "fog", "shot_noise")
    out = corrupt_each(x, names, kind, severity, generator(0, "l"))
    last = corrupt_each(x.contiguous(memory_format=torch.channels_last), names, kind, severity, generator(0, "l"))
    assert_close(last, out)
    wide = corrupt_each(x.double(), names, kind, severity, generator(0, "l"))
    assert wide.dtype == torch.float64
    assert_close(wide.float(), out)


def test_what_does_not_fit_is_refused():
    x, rng, zeros = clouds(3), generator(0, "wrong"), torch.zeros(3, dtype=torch.long)
    with pytest.raises(SpecError, match=r"no corruption 'frog'. Did you mean 'fog'\?"):
        corrupt_each(x, ("fog", "frog"), zeros, zeros, rng)
    for kind in (zeros[:2], zeros - 1, zeros + 1):
        with pytest.raises(ValueError, match=r"kind must hold one number in \[0, 0\] for each of 3 images"):
            corrupt_each(x, ("fog",), kind, zeros, rng)
    for severity in (zeros[:2], zeros - 1, zeros + 6):
        with pytest.raises(ValueError, match=r"severity must hold one number in \[0, 5\]"):
            corrupt_each(x, ("fog",), zeros, severity, rng)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        corrupt_each(x * 255, ("fog",), zeros, zeros, rng)
