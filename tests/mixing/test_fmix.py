"""FMix: shapes of the size asked for, smoother the larger decay, pixels of one of two images, limits."""

import pytest
import torch
from torch.testing import assert_close

from weathered.core.batch import Batch
from weathered.core.rng import generator
from weathered.mixing.fmix import FMix, draw_shapes


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int = 6, dtype: torch.dtype = torch.float32) -> Batch:
    x = torch.randint(256, (size, 3, 9, 12), generator=rng()).to(dtype)
    return Batch.of(x, torch.arange(size))


@pytest.mark.parametrize("size", [(9, 12), (8, 8), (1, 5), (1, 1)])
def test_shapes_hold_the_share_of_pixels_up_to_one(size):
    lam = torch.linspace(0, 1, 30, dtype=torch.float64)
    kept = draw_shapes(size, lam, 3.0, rng()).double().sum((1, 2))
    assert bool(((kept - lam * size[0] * size[1]).abs() < 1).all())
    assert kept[0] == 0
    assert kept[-1] == size[0] * size[1]


def test_a_fraction_of_a_pixel_is_kept_as_often_as_it_is_large():
    kept = draw_shapes((3, 3), torch.full((4000,), 0.25), 3.0, rng()).double().sum((1, 2))
    assert float(kept.mean()) == pytest.approx(9 * 0.25, abs=0.03)


def borders(decay: float) -> float:
    shapes = draw_shapes((32, 32), torch.full((50,), 0.5), decay, rng()).int()
    return float((shapes.diff(dim=1) != 0).double().mean() + (shapes.diff(dim=2) != 0).double().mean())


def test_outlines_are_smoother_the_larger_decay():
    found = [borders(decay) for decay in (0.0, 1.0, 3.0, 6.0)]
    assert found == sorted(found, reverse=True)
    # single pixels at random differ from a neighbour half of the time
    assert found[0] == pytest.approx(1.0, abs=0.05)
    assert found[2] < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("per_sample", [False, True])
def test_each_pixel_is_that_of_one_of_two_images(dtype, per_sample):
    batch = images(dtype=dtype)
    found = FMix(per_sample=per_sample)(batch, generator(3, "fmix"))
    partner = found.target.labels[1]
    own = (found.x == batch.x).all(1)
    other = (found.x == batch.x[partner]).all(1)
    assert bool((own | other).all())
    moved = partner != torch.arange(6)
    assert_close(own.double().mean((1, 2))[moved], found.target.weights[0][moved].double(), atol=1e-6, rtol=0)
    assert found.x.dtype == dtype


def test_without_probability_nothing_is_mixed():
    batch = images()
    assert FMix(probability=0)(batch, rng()) is batch


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": 0}, "alpha must be > 0"), ({"decay": -1}, "decay must be >= 0"), ({"probability": 2}, "probability")],
    ids=str,
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        FMix(**options)


def test_tables_are_refused():
    with pytest.raises(ValueError, match="must be images"):
        FMix()(Batch.of(torch.rand(4, 7), torch.arange(4)), rng())
