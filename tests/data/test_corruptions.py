"""Corruptions: range, determinism, untouched input, growth with severity, and closed forms where there are some."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from weathered.core.errors import SpecError
from weathered.core.rng import generator
from weathered.data.corruptions import CORRUPTIONS, corrupt
from weathered.data.corruptions.blur import DEFOCUS_RADII
from weathered.data.corruptions.common import fractal, gaussian_matrix, separable, splat, warp
from weathered.data.corruptions.digital import CONTRASTS, PIXELATE_SHARES, block_of
from weathered.data.corruptions.jpeg import LUMINANCE, cosine_matrix, jpeg, quality_table
from weathered.data.corruptions.noise import GAUSSIAN_DEVIATIONS, IMPULSE_SHARES, PHOTONS
from weathered.data.corruptions.weather import BRIGHTNESS

KINDS = tuple(CORRUPTIONS)
WITHOUT_DRAWS = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 21, 34), (3, 224, 224)]


def natural(batch=8, channels=3, height=32, width=32, seed=0):
    """Images with the falling spectrum of natural ones: clouds, one field per channel, not filling the range."""
    like = torch.zeros(batch * channels, 1, height, width)
    fields = fractal(like, generator(seed, "images"), decay=0.6).view(batch, channels, height, width)
    return 0.1 + 0.7 * fields


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_range_and_determinism_and_the_input_stays(kind, shape):
    x = natural(2 if shape[-1] > 100 else 4, *shape)
    before = x.clone()
    for severity in (1, 5):
        out = corrupt(x, kind, severity, generator(0, kind))
        assert out.shape == x.shape
        assert out.dtype == x.dtype
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(x, before)
        assert not torch.equal(out, x)
        assert torch.equal(out, corrupt(x, kind, severity, generator(0, kind)))
        same = torch.equal(out, corrupt(x, kind, severity, generator(1, kind)))
        assert same == (kind in WITHOUT_DRAWS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_distance_grows_with_severity(kind, shape):
    x = natural(32, *shape)
    distances = [float((corrupt(x, kind, s, generator(0, kind)) - x).square().mean()) for s in range(1, 6)]
    assert distances[0] > 1e-7
    assert all(later > earlier for earlier, later in itertools.pairwise(distances)), distances


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_depends_on_the_pixels_of_another(kind):
    x = natural(6)
    other = x.clone()
    other[1:] = natural(5, seed=1)
    first, second = (corrupt(images, kind, 3, generator(0, kind))[0] for images in (x, other))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in WITHOUT_DRAWS])
def test_each_image_has_its_own_draws(kind):
    out = corrupt(natural(1).expand(3, -1, -1, -1), kind, 3, generator(0, kind))
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[1], out[2])


@pytest.mark.parametrize(
    "kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"]
)
def test_kinds_that_only_move_light_leave_a_flat_image_flat(kind):
    x = torch.full((3, 3, 30, 30), 0.4)
    torch.testing.assert_close(corrupt(x, kind, 5, generator(0, kind)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_its_stated_strength(severity):
    x = torch.full((100, 3, 32, 32), 0.5)
    normal = corrupt(x, "gaussian_noise", severity, generator(0, "noise")) - x
    assert float(normal.std()) == pytest.approx(GAUSSIAN_DEVIATIONS[severity - 1], rel=0.01)
    assert abs(float(normal.mean())) < 1e-3
    shot = corrupt(x, "shot_noise", severity, generator(0, "noise"))
    photons = PHOTONS[severity - 1]
    assert float(shot.var()) == pytest.approx(0.5 / photons, rel=0.02)
    torch.testing.assert_close(shot * photons, (shot * photons).round(), atol=1e-3, rtol=0)
    impulse = corrupt(x, "impulse_noise", severity, generator(0, "noise"))
    assert set(impulse.unique().tolist()) == {0.0, 0.5, 1.0}
    for value in (0.0, 1.0):
        assert float((impulse == value).float().mean()) == pytest.approx(IMPULSE_SHARES[severity - 1] / 2, rel=0.05)


def test_shot_noise_leaves_black_black():
    assert not corrupt(torch.zeros(2, 1, 8, 8), "shot_noise", 5, generator(0, "noise")).any()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_brightness_raises_the_largest_channel_and_keeps_the_hue(severity):
    shift = BRIGHTNESS[severity - 1]
    grey = natural(channels=1)
    torch.testing.assert_close(corrupt(grey, "brightness", severity, generator(0, "b")), (grey + shift).clamp(max=1))
    x = natural()
    out = corrupt(x, "brightness", severity, generator(0, "b"))
    torch.testing.assert_close(out.amax(1), (x.amax(1) + shift).clamp(max=1))
    torch.testing.assert_close(out / out.amax(1, keepdim=True), x / x.amax(1, keepdim=True))
    black = torch.zeros(1, 3, 4, 4)
    torch.testing.assert_close(corrupt(black, "brightness", severity, generator(0, "b")), black + shift)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_contrast_keeps_the_mean_and_scales_the_deviation(severity):
    x = natural()
    out = corrupt(x, "contrast", severity, generator(0, "c"))
    torch.testing.assert_close(out.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(out.std((2, 3)), CONTRASTS[severity - 1] * x.std((2, 3)))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 20)])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_pixelate_is_constant_in_blocks_and_keeps_their_means(size, severity):
    x = natural(2, 1, *size)
    out = corrupt(x, "pixelate", severity, generator(0, "p"))
    counts = [max(round(PIXELATE_SHARES[severity - 1] * n), 1) for n in size]
    rows, columns = (block_of(n, count) for n, count in zip(size, counts, strict=True))
    assert [len(set(b.tolist())) for b in (rows, columns)] == counts
    for r in range(counts[0]):
        for c in range(counts[1]):
            block = out[:, :, rows == r][:, :, :, columns == c]
            mean = x[:, :, rows == r][:, :, :, columns == c].mean((2, 3), keepdim=True)
            torch.testing.assert_close(block, mean.expand_as(block))
    torch.testing.assert_close(corrupt(out, "pixelate", severity, generator(0, "p")), out)


@pytest.mark.parametrize("severity", [1, 5])
def test_defocus_spreads_a_point_into_a_disc(severity):
    size = 201
    x = torch.zeros(1, 1, size, size)
    x[..., 100, 100] = 1
    out = corrupt(x, "defocus_blur", severity, generator(0, "d"))[0, 0]
    assert float(out.sum()) == pytest.approx(1, abs=1e-4)
    place = torch.arange(size) - 100.0
    distance = (place[:, None].square() + place.square()).sqrt()
    radius = DEFOCUS_RADII[severity - 1] * size
    assert out[distance > radius + 1.5].abs().max() < 1e-6
    # a disc has second moment radius^2 / 2; splitting points over pixels adds at most 1/4 along each axis
    moment = float((out * distance.square()).sum())
    assert 0.98 * radius**2 / 2 < moment < 1.02 * radius**2 / 2 + 0.5


def test_motion_blur_runs_along_one_line_within_45_degrees():
    x = torch.zeros(50, 1, 65, 65)
    x[..., 32, 32] = 1
    out = corrupt(x, "motion_blur", 5, generator(0, "m"))[:, 0]
    place = torch.arange(65) - 32.0
    weights = out / out.sum((1, 2), keepdim=True)
    down = (weights * place[:, None].square()).sum((1, 2))
    right = (weights * place.square()).sum((1, 2))
    both = (weights * place[:, None] * place).sum((1, 2))
    assert (right >= down - 0.3).all()
    covariance = torch.stack([torch.stack([down, both], 1), torch.stack([both, right], 1)], 1)
    narrow, wide = torch.linalg.eigvalsh(covariance).unbind(1)
    assert narrow.max() < 0.5
    assert wide.min() > 5


def test_zoom_blur_keeps_the_centre_and_a_mirror_image_mirrored():
    x = natural(4, 3, 33, 33)
    out = corrupt(x, "zoom_blur", 5, generator(0, "z"))
    torch.testing.assert_close(out[..., 16, 16], x[..., 16, 16])
    torch.testing.assert_close(corrupt(x.flip(-1), "zoom_blur", 5, generator(0, "z")), out.flip(-1))


@pytest.mark.parametrize("kind", ["snow", "frost", "fog"])
def test_weather_brightens_a_dark_image(kind):
    x = torch.full((16, 3, 32, 32), 0.1)
    x[:, :, 0, 0] = 0.9
    means = [float(corrupt(x, kind, s, generator(0, kind)).mean()) for s in (1, 3, 5)]
    assert x.mean() < means[0] < means[1] < means[2]


def test_fog_never_exceeds_the_brightest_value():
    x = 0.8 * natural()
    for severity in (1, 5):
        out = corrupt(x, "fog", severity, generator(0, "fog"))
        assert (out.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()


def colourful(batch, height=32, width=32):
    """Rough in brightness, smooth in colour, as photographs are; whole grey levels."""
    tints = natural(batch, 3, height, width, seed=1)
    tints = separable(tints, gaussian_matrix(height, 4.0, tints), gaussian_matrix(width, 4.0, tints))
    return ((0.7 * natural(batch, 1, height, width) + 0.3 * tints) * 255).round() / 255


def real_jpeg(images, quality):
    """(B, C, H, W) in [0, 1] through Pillow's codec, in grey levels."""
    decoded = []
    for image in (images * 255).round().byte().permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            stream, "JPEG", quality=quality, subsampling="4:2:0"
        )
        decoded.append(np.asarray(Image.open(stream)).reshape(image.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float()


def test_jpeg_of_quality_100_is_nearly_the_identity():
    assert (quality_table(LUMINANCE, 100, torch.zeros(1)) == 1).all()
    grey = (natural(8, 1) * 255).round() / 255
    assert (jpeg(grey, 100) - grey).abs().max() <= 2 / 255
    # colour is halved in resolution even at quality 100
    assert (jpeg(colourful(8), 100) - colourful(8)).abs().mean() < 1 / 255


@pytest.mark.parametrize("quality", [10, 25, 50, 80, 95])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (8, 8), (21, 34)])
def test_jpeg_of_grey_images_is_that_of_the_real_codec(quality, size):
    x = (natural(6, 1, *size) * 255).round() / 255
    ours, real = jpeg(x, quality) * 255, real_jpeg(x, quality)
    # the codec transforms in whole numbers, so that a few coefficients are rounded the other way
    assert (ours - real).abs().mean() < 0.1 * (real - x * 255).abs().mean() + 0.25


@pytest.mark.parametrize("quality", [20, 50, 80])
def test_jpeg_of_colour_images_is_close_to_the_real_codec(quality):
    x = colourful(6)
    ours, real = jpeg(x, quality) * 255, real_jpeg(x, quality)
    # about one grey level: the real decoder interpolates colour where ours repeats it, and works in whole numbers
    assert (ours - real).abs().mean() < 1.25


def test_cosine_matrix_is_orthonormal():
    matrix = cosine_matrix(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64), atol=1e-12, rtol=0)


def test_warp_by_whole_pixels_is_a_shift():
    x = natural(2, 3, 9, 12)
    move = torch.zeros(2, 9, 12, 2)
    move[..., 0], move[..., 1] = 2, -1
    torch.testing.assert_close(warp(x, move)[:, :, 1:, :-2], x[:, :, :-1, 2:])


def test_splat_sums_to_one_and_has_its_points_mean():
    points = torch.tensor([[[0.3, -0.7], [1.2, 0.0]]])
    kernel = splat(points, torch.tensor([3.0, 1.0]), 2)[0]
    place = torch.arange(5) - 2.0
    assert float(kernel.sum()) == pytest.approx(1)
    assert float((kernel * place[:, None]).sum()) == pytest.approx((3 * 0.3 + 1.2) / 4)
    assert float((kernel * place).sum()) == pytest.approx(3 * -0.7 / 4)


def test_dtype_of_the_images_is_kept_and_an_empty_batch_passes():
    for kind in KINDS:
        assert corrupt(natural(2).double(), kind, 2, generator(0, kind)).dtype == torch.float64
        assert corrupt(torch.zeros(0, 3, 8, 8), kind, 2, generator(0, kind)).shape == (0, 3, 8, 8)


def test_wrong_arguments():
    x, rng = natural(1), generator(0, "wrong")
    with pytest.raises(SpecError, match=r"no corruption 'frog'. Did you mean 'fog'\?"):
        corrupt(x, "frog", 1, rng)
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="severity must be 1, 2, 3, 4 or 5"):
            corrupt(x, "fog", severity, rng)
    for wrong in (x[0], x.repeat(1, 2, 1, 1), (x * 255).byte()):
        with pytest.raises(ValueError, match="images must be floating"):
            corrupt(wrong, "fog", 1, rng)
    for wrong in (x * 255, x - 0.5, x * float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            corrupt(wrong, "fog", 1, rng)
    with pytest.raises(ValueError, match=r"quality must be in \[1, 100\], got 0"):
        jpeg(x, 0)
