"""RandAugment and TrivialAugment: what is drawn, at which strengths, and what they may be combined with."""

import pytest
import torch
from torch.testing import assert_close

from weathered import CropFlip, CutMix, Dataset, MixUp, RandAugment, RandomErasing, Run, TrivialAugment, build_model
from weathered.augment.operations import OPERATIONS, SIGNED, operate
from weathered.core.batch import Batch
from weathered.core.errors import Incompatible
from weathered.core.facts import check
from weathered.core.procedure import Procedure
from weathered.core.rng import generator

FACTS = {"image", "range01", "uniform_pixels", "hard_target", "num_classes"}
PARTS = [RandAugment(), RandAugment(num_ops=3, magnitude=30), TrivialAugment(), RandomErasing(probability=1.0)]


def batch_of(size=64, channels=3, height=20, width=16, dtype=torch.uint8):
    x = torch.randint(256, (size, channels, height, width), generator=generator(0, "images"))
    x = x.byte() if dtype == torch.uint8 else x.to(dtype) / 255
    return Batch.of(x, torch.arange(size) % 10)


def of(seen, name):
    operation, strength = seen
    return strength[operation == OPERATIONS.index(name)]


def test_operations_are_uniform_and_independent_between_layers_and_samples():
    seen = RandAugment(num_ops=2).draws(30_000, (20, 16), generator(0, "draws"))
    assert len(seen) == 2
    (first, _), (second, _) = seen
    pairs = torch.bincount(first * len(OPERATIONS) + second, minlength=len(OPERATIONS) ** 2).double()
    expected = len(first) / len(OPERATIONS) ** 2
    # 195 degrees of freedom: chance one in a million lies near 301
    assert float(((pairs - expected) ** 2 / expected).sum()) < 301


def test_rand_augment_takes_one_magnitude_in_the_ranges_of_the_source():
    (seen,) = RandAugment(num_ops=1, magnitude=10).draws(30_000, (20, 16), generator(0, "draws"))
    shift = 150 / 331 / 3
    full = {"shear x": 0.1, "shear y": 0.1, "translate x": 16 * shift, "translate y": 20 * shift, "rotate": 10}
    full |= dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), 0.3)
    full |= {"posterize": 4 / 3, "solarize": 1 / 3}
    for name in OPERATIONS:
        strength, most = of(seen, name), full.get(name, 0.0)
        assert_close(strength.abs(), torch.full_like(strength, most))
        share = float((strength > 0).double().mean())
        if name in SIGNED:
            assert abs(share - 0.5) < 0.06
        else:
            assert share == (1.0 if most else 0.0)


def test_trivial_augment_draws_31_levels_of_the_wide_ranges():
    seen = TrivialAugment().draws(30_000, (20, 16), generator(0, "draws"))
    # translations end at the side of images below 32 pixels
    full = {"shear x": 0.99, "shear y": 0.99, "translate x": 16, "translate y": 20, "rotate": 135}
    full |= dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), 0.99)
    full |= {"posterize": 6, "solarize": 1}
    for name, most in full.items():
        strength = of(seen, name)
        levels = strength / most * 30
        assert_close(levels, levels.round(), atol=1e-6, rtol=0)
        counts = torch.bincount(levels.abs().round().long(), minlength=31).double()
        assert len(counts) == 31
        expected = len(strength) / 31
        # 30 degrees of freedom: chance one in a million lies near 84
        assert float(((counts - expected) ** 2 / expected).sum()) < 84
        assert (name in SIGNED) == bool((strength < 0).any())


def test_translations_of_trivial_augment_end_at_32_pixels():
    seen = TrivialAugment().draws(2000, (64, 48), generator(0, "draws"))
    assert float(of(seen, "translate x").max()) == float(of(seen, "translate y").max()) == 32


def test_magnitude_0_leaves_all_but_autocontrast_and_equalize():
    batch = batch_of(size=2000, height=4, width=4, dtype=torch.float32)
    out = RandAugment(num_ops=1, magnitude=0)(batch, generator(0, "draws")).x
    changed = (out != batch.x).flatten(1).any(1)
    # images of 4 x 4 are too small for equalize, so that one of fourteen operations is left
    assert abs(float(changed.double().mean()) - 1 / 14) < 0.02


def test_each_sample_draws_by_itself():
    x = batch_of(size=1).x.expand(200, -1, -1, -1)
    out = TrivialAugment()(Batch.of(x, torch.arange(200)), generator(0, "draws")).x
    assert len(out.unique(dim=0)) > 100


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_every_part_keeps(part, channels, dtype):
    batch = batch_of(channels=channels, dtype=dtype)
    before, state = batch.x.clone(), torch.get_rng_state()
    out = part(batch, generator(3, "draws"))
    assert torch.equal(batch.x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert out.target is batch.target
    assert torch.equal(out.index, batch.index)
    assert out.x.dtype == dtype
    assert out.x.shape == before.shape
    assert 0 <= float(out.x.min()) <= float(out.x.max()) <= (255 if dtype == torch.uint8 else 1)
    assert float((out.x != before).flatten(1).any(1).double().mean()) > 0.5
    assert torch.equal(out.x, part(batch, generator(3, "draws")).x)
    assert not torch.equal(out.x, part(batch, generator(4, "draws")).x)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_bytes_and_floats_take_the_same_draws(part):
    x = batch_of(size=200).x
    as_bytes = part(Batch.of(x, torch.arange(200)), generator(5, "draws")).x
    as_floats = part(Batch.of(x.float() / 255, torch.arange(200)), generator(5, "draws")).x
    gaps = (as_bytes.double() / 255 - as_floats.double()).abs().flatten(1).mean(1)
    # rounding to bytes is amplified by later operations in a few images; other draws would differ in most
    assert float((gaps < 0.01).double().mean()) > 0.85
    for dtype in (torch.uint8, torch.float32):
        empty = batch_of(dtype=dtype).x[:0]
        assert part(Batch.of(empty, torch.arange(0)), generator(5, "draws")).x.shape == empty.shape


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_only_before_pasting(part):
    name = type(part).__name__
    with pytest.raises(Incompatible, match=rf"{name} needs 'uniform_pixels' .* Put {name} before CutMix"):
        check(FACTS, [("transform", CutMix()), ("transform", part)], Procedure())
    chain = [CropFlip(), part, MixUp(), part, CutMix()]
    check(FACTS, [("transform", link) for link in chain], Procedure())


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_masks_are_refused(part):
    with pytest.raises(Incompatible, match=f"{type(part).__name__} works on one label for each sample"):
        check({*FACTS, "mask"}, [("transform", part)], Procedure())


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_after_mixing_the_targets_are_those_of_the_mixture(part):
    batch = batch_of(dtype=torch.float32)
    mixed = MixUp()(batch, generator(0, "mixup"))
    assert part(mixed, generator(0, "draws")).target is mixed.target


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_a_run_gives_bytes_and_takes_floats(part):
    batch = batch_of()
    data = Dataset.of(batch.x, batch.target.single())
    run = Run(build_model("cnn_small:width=8", data), data, transforms=[part])
    run.begin_step()
    made = run.prepare(batch.x, data.labels, torch.arange(len(data)))
    again = part(Batch.of(batch.x, data.labels), run_generator(run, part))
    assert made.x.dtype == torch.float32
    assert_close(made.x, again.x.float() / 255)


def run_generator(run, part):
    run.begin_step()
    return run.generator(f"{type(part).__name__}.1")


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_ops must be >= 1, got 0; to switch it off, leave the part out"):
        RandAugment(num_ops=0)
    for magnitude in (-1, 31, float("nan")):
        with pytest.raises(ValueError, match=r"magnitude must be in \[0, 30\], got"):
            RandAugment(magnitude=magnitude)
    for part in (RandAugment(), TrivialAugment()):
        with pytest.raises(ValueError, match=r"with 1 or 3 channels, got shape \(64, 4, 20, 16\)"):
            part(batch_of(channels=4), generator(0, "draws"))
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\), got shape \(4, 3\)"):
        RandomErasing()(Batch.of(torch.rand(4, 3), torch.arange(4)), generator(0, "draws"))


def test_a_batch_is_operated_on_as_drawn():
    x = batch_of().x
    part = RandAugment(num_ops=2)
    out = x
    for operation, strength in part.draws(len(x), (20, 16), generator(0, "draws")):
        out = operate(out, operation, strength)
    assert torch.equal(part(Batch.of(x, torch.arange(64)), generator(0, "draws")).x, out)
    part = TrivialAugment()
    out = operate(x, *part.draws(len(x), (20, 16), generator(0, "draws")))
    assert torch.equal(part(Batch.of(x, torch.arange(64)), generator(0, "draws")).x, out)
