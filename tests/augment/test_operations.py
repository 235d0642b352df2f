"""The operations equal torchvision's image by image, and each has its limits."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as F

from weathered.augment.operations import GEOMETRY, OPERATIONS, SIGNED, geometry, operate
from weathered.core.rng import generator

STRENGTHS = {
    "shear x": (-0.99, -0.137, 0.31, 0.99),
    "shear y": (-0.99, -0.137, 0.31, 0.99),
    "translate x": (-32.0, -2.9, 1.0, 4.7),
    "translate y": (-32.0, -2.9, 1.0, 4.7),
    "rotate": (-135.0, -17.0, 8.3, 91.3, 113.0),
    "brightness": (-0.987, -0.417, 0.313, 0.987),
    "colour": (-0.987, -0.417, 0.313, 0.987),
    "contrast": (-0.987, -0.417, 0.313, 0.987),
    "sharpness": (-0.987, -0.417, 0.313, 0.987),
    "posterize": (1.0, 2.0, 4.0, 7.0),
    "solarize": (0.1, 0.35, 0.8, 1.0),
    "autocontrast": (0.0,),
    "equalize": (0.0,),
}


def images(dtype, channels=3, height=18, width=23, size=6):
    """Random images of different ranges; the first is of one value, the second black and white."""
    x = torch.randint(256, (size, channels, height, width), generator=generator(0, "operations"))
    spread = torch.tensor([0, 255, 255, 128, 60, 200])[:, None, None, None]
    x = (x * spread).div(255, rounding_mode="floor") + torch.tensor([77, 0, 0, 60, 20, 55])[:, None, None, None]
    x[1] = x[1].ge(128) * 255
    return x.byte() if dtype == torch.uint8 else x.to(dtype) / 255


def every(name, x, strength):
    kind = torch.full((len(x),), OPERATIONS.index(name))
    return operate(x, kind, torch.full((len(x),), strength, dtype=torch.float64))


def torchvision(name, image, strength):
    """One image by torchvision's function, with the arguments of its own random augmentation."""
    corner = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "center": [0, 0]}
    if name in ("shear x", "shear y"):
        degrees = float(torch.rad2deg(torch.tensor(strength, dtype=torch.float64).atan()))
        return F.affine(image, shear=[degrees, 0.0] if name == "shear x" else [0.0, degrees], **corner)
    if name in ("translate x", "translate y"):
        shift = [int(strength), 0] if name == "translate x" else [0, int(strength)]
        return F.affine(image, angle=0.0, translate=shift, scale=1.0, shear=[0.0, 0.0])
    top = 255 if image.dtype == torch.uint8 else 1.0
    return {
        "rotate": lambda: F.rotate(image, strength),
        "brightness": lambda: F.adjust_brightness(image, 1 + strength),
        "colour": lambda: F.adjust_saturation(image, 1 + strength),
        "contrast": lambda: F.adjust_contrast(image, 1 + strength),
        "sharpness": lambda: F.adjust_sharpness(image, 1 + strength),
        "posterize": lambda: F.posterize(image, 8 - int(strength)),
        "solarize": lambda: F.solarize(image, top * (1 - strength)),
        "autocontrast": lambda: F.autocontrast(image),
        "equalize": lambda: F.equalize(image),
    }[name]()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "strength"), [(name, value) for name, all_ in STRENGTHS.items() for value in all_])
def test_each_operation_equals_that_of_torchvision(name, strength, channels, dtype):
    """To 1e-6 for floats. A byte may differ by 1 where float32 falls on the other side of a whole number.

    Strengths are such that few products are whole numbers. In the first image all are: it stays here, and
    torchvision's sum can end just below it.
    """
    x = images(dtype, channels)
    before = x.clone()
    found = every(name, x, strength)
    expected = torch.stack([torchvision(name, image, strength) for image in x])
    assert found.dtype == dtype
    assert torch.equal(x, before)
    if name in GEOMETRY:
        apart = (found != expected).any(1)
        assert not apart[:, ~on_a_border(name, strength, x.shape[2:])].any()
    elif dtype == torch.uint8:
        apart = (found.int() - expected.int()).abs()
        assert int(apart.max()) <= 1
        assert float((apart[1:] > 0).double().mean()) < 0.005
    else:
        assert_close(found, expected, atol=1e-6, rtol=0)


def on_a_border(name, strength, size):
    """Pixels whose place lies between two pixels to 1e-4: there rounding decides, here in float64, there in float32."""
    matrix = geometry(torch.tensor([OPERATIONS.index(name)]), torch.tensor([strength], dtype=torch.float64), size)[0]
    row, column = torch.meshgrid(*(torch.arange(n).double() + 0.5 for n in size), indexing="ij")
    place = torch.einsum("ij,jhw->ihw", matrix, torch.stack([column, row, torch.ones_like(row)]))
    near = ((place - place.round()).abs() < 1e-4).any(0)
    assert float(near.double().mean()) < 0.1
    return near


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize")])
def test_strength_0_is_the_identity(name, dtype):
    x = images(dtype)
    assert torch.equal(every(name, x, 0.0), x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_kind_and_range_stay(dtype):
    x = images(dtype)
    top = 255 if dtype == torch.uint8 else 1
    for name, strengths in STRENGTHS.items():
        for strength in strengths:
            out = every(name, x, strength)
            assert out.dtype == dtype
            assert float(out.min()) >= 0
            assert float(out.max()) <= top


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_is_its_samples_alone(dtype):
    x = images(dtype, size=6).repeat(20, 1, 1, 1)
    rng = generator(1, "draws")
    kind = torch.randint(len(OPERATIONS), (len(x),), generator=rng)
    strength = torch.rand(len(x), generator=rng, dtype=torch.float64)
    assert len(kind.unique()) == len(OPERATIONS)
    together = operate(x, kind, strength)
    alone = torch.cat([operate(x[[i]], kind[[i]], strength[[i]]) for i in range(len(x))])
    # the order in which a mean and a convolution add up may change the last bit, and a byte by 1
    assert_close(together.double(), alone.double(), atol=1.0 if dtype == torch.uint8 else 1e-6, rtol=0)
    exact = ~torch.isin(kind, torch.tensor([OPERATIONS.index(name) for name in ("contrast", "sharpness")]))
    assert torch.equal(together[exact], alone[exact])


def test_directions():
    """Positive strengths move a mark right, down, against the clock, brighten, saturate and sharpen."""
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 6] = 1

    def mark(name, strength):
        return divmod(int(every(name, x, strength)[0, 0].flatten().argmax()), 9)

    assert mark("translate x", 2.0) == (4, 8)
    assert mark("translate y", 2.0) == (6, 6)
    assert mark("translate x", 2.9) == (4, 8)
    assert mark("rotate", 90.0) == (2, 4)
    assert mark("shear x", 1.1) == (4, 1)
    assert mark("shear y", 0.5) == (1, 6)
    grey = torch.full((1, 3, 4, 4), 0.5)
    assert float(every("brightness", grey, 0.2).mean()) == pytest.approx(0.6)
    tinted = torch.tensor([0.6, 0.5, 0.4]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert float(every("colour", tinted, 0.5).std()) > float(tinted.std())
    noise = torch.rand(1, 1, 9, 9, generator=generator(0, "noise")) / 2 + 0.25
    assert float(every("contrast", noise, 0.3).std()) == pytest.approx(1.3 * float(noise.std()), rel=1e-5)
    inner = (..., slice(2, 7), slice(2, 7))
    assert float(every("sharpness", noise, 0.3)[inner].std()) > float(noise[inner].std())


@pytest.mark.parametrize("name", ["brightness", "colour", "contrast"])
def test_factor_0_is_the_other_image(name):
    """Black, grey, and one value of grey."""
    out = every(name, images(torch.float32), -1.0)
    spread = {"brightness": out.amax((1, 2, 3)), "colour": out.amax(1) - out.amin(1)}
    spread["contrast"] = out.amax((1, 2, 3)) - out.amin((1, 2, 3))
    assert float(spread[name].max()) < 1e-6


def test_colour_of_grey_images_is_the_identity():
    for dtype in (torch.uint8, torch.float32):
        x = images(dtype, channels=1)
        assert torch.equal(every("colour", x, 0.9), x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_autocontrast_reaches_both_ends_and_leaves_one_value(dtype):
    x = images(dtype)
    out = every("autocontrast", x, 0.0)
    top, gap = (255, 1) if dtype == torch.uint8 else (1, 1e-6)
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[1:].amin((2, 3)).double(), torch.zeros(5, 3).double())
    assert_close(out[1:].amax((2, 3)).double(), torch.full((5, 3), top).double(), atol=gap, rtol=0)
    assert_close(every("autocontrast", out, 0.0).double(), out.double(), atol=gap, rtol=0)


def test_equalize_flattens_the_histogram_and_leaves_small_and_even_images():
    dark = (torch.rand(1, 1, 64, 64, generator=generator(0, "dark")) ** 3 * 255).byte()
    shares = torch.histc(every("equalize", dark, 0.0).float(), 4, 0, 255) / 64**2
    assert float(torch.histc(dark.float(), 4, 0, 255)[0]) / 64**2 > 0.5
    assert float((shares - 0.25).abs().max()) < 0.04
    even = images(torch.uint8)[:1]
    assert torch.equal(every("equalize", even, 0.0), even)
    small = images(torch.uint8, height=15, width=15)
    assert torch.equal(every("equalize", small, 0.0), small)


def test_solarize_at_full_strength_inverts_and_posterize_counts_values():
    for dtype in (torch.uint8, torch.float32):
        x = images(dtype)
        top = 255 if dtype == torch.uint8 else 1
        assert torch.equal(every("solarize", x, 1.0), top - x)
        for dropped in range(1, 8):
            assert len(every("posterize", x, float(dropped))[2:].unique()) <= 2 ** (8 - dropped)


def test_gradient_passes_through_geometry_and_blends():
    x = images(torch.float32).requires_grad_()
    every("translate x", x, 3.0).sum().backward()
    assert float(x.grad.sum()) == pytest.approx(6 * 3 * 18 * 20)
    assert {"identity", "posterize", "solarize", "autocontrast", "equalize"}.isdisjoint(SIGNED)


def test_wrong_arguments():
    x, zeros = images(torch.float32), torch.zeros(6)
    with pytest.raises(ValueError, match=r"with 1 or 3 channels, got shape \(6, 2, 18, 23\)"):
        operate(x[:, :2], zeros.long(), zeros)
    with pytest.raises(ValueError, match="must be uint8 or floating-point numbers"):
        operate(x.long(), zeros.long(), zeros)
    with pytest.raises(ValueError, match=r"one value for each of 6 samples, got \(5,\)"):
        operate(x, zeros[:5].long(), zeros)
    with pytest.raises(ValueError, match=r"operations must be in \[0, 13\], got 14 to 14"):
        operate(x, zeros.long() + 14, zeros)
    assert len(operate(x[:0], zeros[:0].long(), zeros[:0])) == 0
