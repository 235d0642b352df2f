"""The segmentation audit: closed forms, limits, and agreement with what is counted pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weathered import Dataset
from weathered.audit.calibration import expected_calibration_error, top_label
from weathered.audit.segmentation import audit_segmentation, count_pixels, overlap
from weathered.core.errors import NonFinite
from weathered.core.pixels import IGNORE, pixel_labels, pixel_logits

NAMES = ("a", "b", "c", "d")


def data_of(seed, size=6, unknown=0.1):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 4, (size, 5, 7), generator=rng)
    mask[torch.rand(mask.shape, generator=rng) < unknown] = IGNORE
    images = torch.randint(0, 256, (size, 3, 5, 7), generator=rng, dtype=torch.uint8)
    return Dataset.segmentation(images, mask.to(torch.uint8), NAMES)


def network(seed):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 1, 1, generator=rng) * 3
    return lambda x: torch.nn.functional.conv2d(x, weight)


@given(st.integers(0, 30), st.integers(1, 7))
def test_counts_are_those_of_each_pixel_whatever_the_batch(seed, batch_size):
    data, predict = data_of(seed), network(seed)
    counts = count_pixels(predict, data, batch_size)
    logits = predict(data.floats(torch.arange(6)))
    mask = data.extra["mask"]
    predicted, labels = pixel_logits(logits, mask).argmax(1), pixel_labels(mask)
    for c in range(4):
        assert counts.hits[:, c].sum() == int(((predicted == c) & (labels == c)).sum())
        assert counts.given[:, c].sum() == int((labels == c).sum())
        assert counts.predicted[:, c].sum() == int((predicted == c).sum())
    assert counts.accuracy == pytest.approx(float((predicted == labels).double().mean()))


@given(st.integers(0, 30))
def test_calibration_is_that_of_all_pixels(seed):
    data, predict = data_of(seed), network(seed)
    result = audit_segmentation(count_pixels(predict, data), NAMES, resamples=20)
    mask = data.extra["mask"]
    p = pixel_logits(predict(data.floats(torch.arange(6))), mask).double().softmax(1)
    expected = expected_calibration_error(*top_label(p, pixel_labels(mask)))
    assert result.summary["expected calibration error"].value == pytest.approx(expected)


def test_overlap_in_closed_form():
    found = overlap(np.array([2.0, 0, 3, 0]), np.array([4.0, 5, 3, 0]), np.array([6.0, 0, 3, 0]))
    assert found[:3].tolist() == [2 / 8, 0, 1]
    assert np.isnan(found[3])


def test_a_perfect_model():
    data = data_of(0)
    mask = data.extra["mask"].long()
    answers = iter(torch.nn.functional.one_hot(mask.where(mask < 4, 0), 4).movedim(-1, 1).float().mul(50).split(16))
    result = audit_segmentation(count_pixels(lambda x: next(answers), data), NAMES, data.class_counts)
    for name in ("mean IoU", "accuracy", "balanced accuracy", "worst class IoU"):
        assert result.summary[name] == pytest.approx((1, 1, 1, 6))
    assert result.summary["expected calibration error"].value == pytest.approx(0, abs=1e-9)


def test_a_class_that_occurs_nowhere_takes_part_in_no_mean():
    mask = torch.zeros(3, 5, 7, dtype=torch.uint8)
    mask[:, 0] = 1
    data = Dataset.segmentation(torch.zeros(3, 3, 5, 7, dtype=torch.uint8), mask, NAMES)
    logits = torch.zeros(3, 4, 5, 7)
    logits[:, 0] = 5
    result = audit_segmentation(count_pixels(lambda x: logits[: len(x)], data), NAMES)
    # class 0: 28 of 35 predicted; class 1: none of 7
    assert result.summary["mean IoU"].value == pytest.approx((28 / 35 + 0) / 2)
    assert result.summary["balanced accuracy"].value == pytest.approx(0.5)
    assert any("occur in no test image" in note for note in result.notes)


def test_thirds_go_by_training_pixels():
    counts = count_pixels(network(1), data_of(1))
    result = audit_segmentation(counts, NAMES, torch.tensor([10, 1000, 100, 50]))
    by_class = overlap(counts.hits.sum(0), counts.given.sum(0), counts.predicted.sum(0))
    assert result.summary["head IoU"].value == pytest.approx(by_class[[1, 2]].mean())
    assert result.summary["middle IoU"].value == pytest.approx(by_class[3])
    assert result.summary["tail IoU"].value == pytest.approx(by_class[0])
    assert "tail IoU" not in audit_segmentation(counts, NAMES, torch.full((4,), 9)).summary


def test_intervals_hold_the_value_and_shrink_with_more_images():
    few = audit_segmentation(count_pixels(network(2), data_of(2, size=8)), NAMES).summary["mean IoU"]
    many = audit_segmentation(count_pixels(network(2), data_of(2, size=200)), NAMES).summary["mean IoU"]
    assert few.low <= few.value <= few.high
    assert many.high - many.low < few.high - few.low
    assert (few.n, many.n) == (8, 200)


def test_the_same_draws_give_the_same_interval():
    counts = count_pixels(network(2), data_of(2))
    assert audit_segmentation(counts, NAMES).summary == audit_segmentation(counts, NAMES).summary


def test_an_image_without_labels_counts_nowhere():
    data = data_of(4)
    blank = data.replace(extra={"mask": data.extra["mask"].index_fill(0, torch.tensor([2]), IGNORE)})
    rest = data.select(torch.tensor([0, 1, 3, 4, 5]))
    with_blank, without = (audit_segmentation(count_pixels(network(4), d), NAMES) for d in (blank, rest))
    assert with_blank.summary["mean IoU"].value == pytest.approx(without.summary["mean IoU"].value)
    assert np.isnan(with_blank.per_sample["loss"][2])


def test_what_cannot_be_counted_is_refused():
    data = data_of(0)
    with pytest.raises(NonFinite, match="row 0"):
        count_pixels(lambda x: torch.full((len(x), 4, 5, 7), torch.nan), data)
    with pytest.raises(ValueError, match=r"expected logits \(B, 4, H, W\)"):
        count_pixels(lambda x: torch.zeros(len(x), 3, 5, 7), data)
    with pytest.raises(ValueError, match="no masks"):
        count_pixels(lambda x: x, Dataset.of(torch.zeros(2, 3, 5, 7, dtype=torch.uint8), torch.tensor([0, 1])))
    counts = count_pixels(network(0), data)
    with pytest.raises(ValueError, match="4 classes, but there are 2 names"):
        audit_segmentation(counts, NAMES[:2])
    with pytest.raises(ValueError, match="no pixel"):
        audit_segmentation(counts._replace(given=counts.given * 0), NAMES)
