"""One of several transforms: drawn by weight, one for each batch, with the traits of all."""

import pytest
import torch

from weathered.assemble import build, build_parts, resolve
from weathered.augment.crop_flip import CropFlip
from weathered.core.batch import Batch
from weathered.core.errors import SpecError
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.mixing.cutmix import CutMix
from weathered.mixing.mixup import MixUp
from weathered.mixing.one_of import OneOf

BATCH = Batch.of(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4))


class Mark(MixUp):
    """Adds its number to the inputs."""

    def __init__(self, number: float):
        super().__init__()
        self.number = number

    def apply(self, batch, rng):
        return batch.replace(x=batch.x * 0 + self.number)


def test_parts_are_drawn_by_their_weights():
    part = OneOf([Mark(0), Mark(1), Mark(2)], [1, 3, 0])
    drawn = torch.tensor([float(part(BATCH, generator(0, step)).x.mean()) for step in range(2000)])
    assert float((drawn == 1).double().mean()) == pytest.approx(0.75, abs=0.04)
    assert float((drawn == 2).double().sum()) == 0


def test_it_needs_and_breaks_what_any_part_does_and_takes_bytes_where_all_do():
    part = OneOf([MixUp(), CutMix()])
    assert set(part.traits.needs) == set(CutMix.traits.needs)
    assert set(part.traits.breaks) == {"hard_target", "uniform_pixels", "caption"}
    assert not part.accepts_uint8
    assert OneOf([CutMix(), CutMix(per_sample=True)]).accepts_uint8


def test_a_recipe_names_its_parts(small_digits: Dataset):
    spec = "one-of:parts=['mixup:alpha=0.2','cutmix'],weights=[1,2]"
    part = build(resolve([spec])[0], small_digits)
    assert [type(inner) for inner in part.parts] == [MixUp, CutMix]
    assert part.parts[0].alpha == 0.2
    assert part.weights == (1.0, 2.0)
    again = str(resolve([spec])[0])
    assert build(resolve([again])[0], small_digits).weights == part.weights
    weighted = build_parts(resolve(["one-of:parts=['unimix','crop-flip']"]), small_digits).slots["transforms"][0]
    assert isinstance(weighted.parts[1], CropFlip)


def test_what_does_not_fit_is_refused(small_digits: Dataset):
    with pytest.raises(SpecError, match="takes transforms, gce is a loss"):
        build(resolve(["one-of:parts=['gce']"])[0], small_digits)
    with pytest.raises(ValueError, match="one weight for each"):
        OneOf([MixUp()], [1, 2])
    with pytest.raises(ValueError, match="not all 0"):
        OneOf([MixUp(), CutMix()], [0, 0])
    with pytest.raises(ValueError, match="at least one transform"):
        OneOf([])
    with pytest.raises(ValueError, match="parts must be transforms such as MixUp\\(\\), got 'mixup'"):
        OneOf(["mixup"])  # pyright: ignore[reportArgumentType]
