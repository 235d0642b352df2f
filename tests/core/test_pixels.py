"""Losses, weights and crops on pixels: the same as for as many samples, and pixels without a class have no say."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from weathered import DRW, ClassBalanced, CropFlip, CutMix, Dataset, Focal, JoCoR, LogitAdjustment, Run, Settings
from weathered.core.batch import Batch
from weathered.core.errors import DataError, Incompatible
from weathered.core.facts import Traits
from weathered.core.pixels import IGNORE, MASK, main_labels, pixel_counts, pixel_labels, pixel_logits
from weathered.core.roles import Output
from weathered.core.target import Target
from weathered.data.sources import load
from weathered.nn.build import build_model


def masks(seed, size=4, height=5, width=6, classes=3, unknown=0.2):
    rng = torch.Generator().manual_seed(seed)
    found = torch.randint(0, classes, (size, height, width), generator=rng)
    return found.masked_fill(torch.rand(found.shape, generator=rng) < unknown, IGNORE).to(torch.uint8)


def batch_of(mask, x=None):
    x = torch.zeros(len(mask), 3, *mask.shape[1:]) if x is None else x
    target = Target.hard(pixel_labels(mask))
    return Batch(x, target, torch.arange(len(mask)), {MASK: mask})


def run_of(size=8, **parts):
    data = load(f"shapes:{size}")
    settings = Settings(epochs=1, batch_size=4)
    return Run(lambda seed: build_model("unet:width=4,depth=1", data, seed=seed), data, settings=settings, **parts)


@given(st.integers(0, 100))
def test_logits_and_labels_of_pixels_are_in_one_order(seed):
    mask = masks(seed)
    logits = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    rows, labels = pixel_logits(logits, mask), pixel_labels(mask)
    expected = F.cross_entropy(logits, mask.long(), ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(F.cross_entropy(rows, labels, reduction="none"), expected[mask != IGNORE])


@cache
def plain_run():
    return run_of()


@given(st.integers(0, 50))
def test_the_objective_is_the_mean_over_labelled_pixels(seed):
    run, mask = plain_run(), masks(seed, height=20, width=20, classes=8)
    logits = torch.randn(4, 8, 20, 20, requires_grad=True)
    found = run.objective(Output(logits), batch_of(mask))
    expected = F.cross_entropy(logits, mask.long(), ignore_index=IGNORE)
    torch.testing.assert_close(found, expected)
    gradient = torch.autograd.grad(found, logits)[0]
    assert not gradient.movedim(1, -1)[mask == IGNORE].any()


def test_class_weights_are_those_of_torch():
    counts = load("shapes:8").class_counts.clamp_min(1)
    weighting = ClassBalanced(counts)
    run, mask = run_of(reweight=weighting), masks(3, height=20, width=20, classes=8)
    logits = torch.randn(4, 8, 20, 20)
    expected = F.cross_entropy(logits, mask.long(), weight=weighting.class_weights.float(), ignore_index=IGNORE)
    torch.testing.assert_close(run.objective(Output(logits), batch_of(mask)), expected)


def test_a_loss_of_pixels_is_that_of_as_many_samples():
    counts = torch.tensor([900, 50, 10])
    mask, logits = masks(1), torch.randn(4, 3, 5, 6)
    batch = batch_of(mask)
    run = run_of(loss=Focal(gamma=2.0))
    torch.testing.assert_close(
        run.losses(Output(logits), batch), Focal(gamma=2.0)(pixel_logits(logits, mask), pixel_labels(mask))
    )
    adjusted = LogitAdjustment(counts)(pixel_logits(logits, mask), pixel_labels(mask))
    assert adjusted.shape == (int((mask != IGNORE).sum()),)


def test_images_without_a_label_leave_a_loss_of_zero_with_a_gradient():
    run, mask = run_of(), torch.full((2, 20, 20), IGNORE, dtype=torch.uint8)
    logits = torch.randn(2, 8, 20, 20, requires_grad=True)
    loss = run.objective(Output(logits), batch_of(mask))
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


@given(st.integers(0, 50), st.integers(0, 3), st.booleans())
def test_masks_move_with_their_images(seed, padding, flip):
    mask = masks(seed, unknown=0.0)
    x = ((mask + 1) * 40)[:, None].expand(-1, 3, -1, -1).contiguous()
    moved = CropFlip(padding=padding, flip=flip)(batch_of(mask, x), torch.Generator().manual_seed(seed))
    expected = moved.x[:, 0].int() // 40 - 1
    torch.testing.assert_close(moved.extra[MASK].int(), torch.where(expected < 0, IGNORE, expected))


def test_pixels_without_a_label_stay_so_through_a_crop():
    mask = torch.full((2, 5, 5), IGNORE, dtype=torch.uint8)
    moved = CropFlip(padding=2)(batch_of(mask), torch.Generator().manual_seed(0))
    assert (moved.extra[MASK] == IGNORE).all()


def test_the_target_is_read_after_the_transforms():
    run = run_of(transforms=[CropFlip(padding=4)])
    batch = run.prepare(run.train.inputs.fetch(torch.arange(4)), run.train.labels[:4], torch.arange(4))
    assert len(batch.target) == int((batch.extra[MASK] != IGNORE).sum()) < 4 * 400


@pytest.mark.parametrize(
    "parts",
    [{"transforms": [CutMix()]}, {"procedure": JoCoR()}, {"terms": [lambda run, batch, output: output.logits.mean()]}],
)
def test_parts_for_samples_are_refused(parts):
    with pytest.raises(Incompatible, match="one label for each sample, but these data have one for each pixel"):
        run_of(**parts)


def test_a_part_may_say_that_it_works_on_pixels():
    class Term:
        traits = Traits(per_pixel=True)

        def __call__(self, run, batch, output):
            return output.logits.mean() * 0

    run_of(terms=[Term()])


def test_a_loss_that_needs_more_than_classes_is_refused():
    class OfFeatures:
        traits = Traits(needs={"features": "reads them"})

        def __call__(self, logits, labels, features):
            return logits.sum(1)

    with pytest.raises(Incompatible, match="OfFeatures works on one label"):
        run_of(loss=OfFeatures())


def test_deferred_weights_count_pixels():
    run = run_of(size=40, reweight=DRW(load("shapes:40").class_counts, start=0.0))
    weights = run.weights(torch.ones(4), Target.hard(torch.tensor([0, 0, 7, 7])))
    assert weights is not None
    assert float(weights[2]) > 5 * float(weights[0])


@given(st.integers(0, 50))
def test_counts_and_main_classes(seed):
    found = masks(seed)
    counts = pixel_counts(found, 3)
    assert counts.tolist() == [int((found == c).sum()) for c in range(3)]
    for mask, main in zip(found, main_labels(found, 3), strict=True):
        own = [int((mask == c).sum()) for c in range(3)]
        assert own[int(main)] == max(own)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda m: m[:, :4], "masks are 4x6 pixels, the images 5x6"),
        (lambda m: m.long(), "must be .* uint8"),
        (lambda m: m[:2], "one for each of 4 images"),
    ],
)
def test_masks_that_do_not_fit_are_refused(changed, message):
    images = torch.zeros(4, 3, 5, 6, dtype=torch.uint8)
    with pytest.raises(DataError, match=message):
        Dataset.segmentation(images, changed(masks(0)), ("a", "b", "c"))


def test_a_class_without_a_name_is_refused_with_its_row():
    images, found = torch.zeros(4, 3, 5, 6, dtype=torch.uint8), masks(0, unknown=0)
    found[2, 0, 0] = 7
    with pytest.raises(DataError, match="row 2 holds the value 7, but there are 3 classes; 255 marks"):
        Dataset.segmentation(images, found, ("a", "b", "c"))


def test_logits_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"logits \(B, C, H, W\) for masks"):
        pixel_logits(torch.zeros(4, 3), masks(0))
