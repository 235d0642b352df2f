"""Segmentation: how far the classes that a model gives to pixels overlap with the true ones, and how sure it is.

Intersection over union of class c: pixels of c predicted as c, over pixels that are of c or predicted as c, counted
over the whole data set (Everingham et al., IJCV 2010). Its mean is over the classes that occur in truth or prediction.
Pixels of one image are not independent, so intervals are percentiles of a bootstrap over images (Efron, 1979).
Pixels without a label count nowhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from weathered.audit.accuracy import TAIL_RATIO, THIRDS, thirds_by_count
from weathered.audit.binning import bin_confidence
from weathered.audit.result import AuditResult, Chart, Series, Table, quoted
from weathered.core.errors import NonFinite
from weathered.core.pixels import IGNORE, MASK
from weathered.core.rng import generator
from weathered.data.dataset import Dataset
from weathered.stats import Estimate

BINS = 15


class PixelCounts(NamedTuple):
    """What a model says of the pixels of N images, in counts.

    hits, given, predicted (N, C): pixels rightly given each class, of each class, and predicted as it. bins (N, 15, 3):
    of confidence, each with number, sum of confidences and hits. loss, confidence, label_probability (N,): means over
    the labelled pixels of an image, NaN without any. main (N,): the class that most pixels are predicted as.
    """

    hits: np.ndarray
    given: np.ndarray
    predicted: np.ndarray
    bins: np.ndarray
    loss: np.ndarray
    confidence: np.ndarray
    label_probability: np.ndarray
    main: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of all labelled pixels that are right."""
        return float(self.hits.sum() / max(self.given.sum(), 1))


@torch.no_grad()
def count_pixels(predict: Callable[[Tensor], Tensor], dataset: Dataset, batch_size: int = 16) -> PixelCounts:
    """Count what a model says of segmentation data, a batch of images at a time.

    predict: floats (B, ...) to test-time logits (B, C, H, W). Raises NonFinite naming the row with other logits, and
    ValueError if the data have no masks or the logits another number of classes.
    """
    if not dataset.is_segmentation:
        raise ValueError(f"{dataset.name}: pixels are counted where they have labels, these data have no masks")
    parts = []
    for rows in torch.arange(len(dataset)).split(batch_size):
        logits = predict(dataset.floats(rows)).float().cpu()
        if logits.ndim != 4 or logits.shape[1] != dataset.num_classes:
            raise ValueError(f"expected logits (B, {dataset.num_classes}, H, W), got {tuple(logits.shape)}")
        if not torch.isfinite(logits).all():
            row = int(rows[0]) + int((~torch.isfinite(logits)).flatten(1).any(1).nonzero()[0])
            raise NonFinite(f"{dataset.name}: the model's logits for row {row} are not finite.")
        parts.append(_count_batch(logits, dataset.extra[MASK][rows]))
    return PixelCounts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _count_batch(logits: Tensor, mask: Int[Tensor, "B H W"]) -> tuple[np.ndarray, ...]:
    images, classes = logits.shape[:2]
    known = mask != IGNORE
    image = torch.arange(images)[:, None, None].expand_as(mask)[known]
    label = mask[known].long()
    log_p = logits.permute(0, 2, 3, 1)[known].double().log_softmax(1)
    confidence, predicted = log_p.max(1)
    confidence, own = confidence.exp(), log_p.gather(1, label[:, None])[:, 0]
    right = predicted == label

    def per_class(of: Tensor, weights: Tensor | None = None) -> np.ndarray:
        return _summed(image * classes + of, weights, images * classes).reshape(images, classes)

    def per_image(values: Tensor) -> np.ndarray:
        sums, counts = _summed(image, values, images), _summed(image, None, images)
        return np.divide(sums, counts, out=np.full(images, np.nan), where=counts > 0)

    given = per_class(label)
    by_class = per_class(predicted)
    place = bin_confidence(confidence.clamp(0, 1).numpy(), BINS).of_sample if len(label) else np.zeros(0, np.int64)
    cell = image * BINS + torch.from_numpy(place)
    bins = np.stack([_summed(cell, values, images * BINS) for values in (None, confidence, right.double())], -1)
    return (
        per_class(label, right.double()), given, by_class, bins.reshape(images, BINS, 3),
        per_image(-own), per_image(confidence), per_image(own.exp()), by_class.argmax(1),
    )  # fmt: skip


def _summed(cell: Tensor, weights: Tensor | None, size: int) -> np.ndarray:
    values = None if weights is None else weights.numpy()
    return np.bincount(cell.numpy(), weights=values, minlength=size).astype(np.float64)


def overlap(hits: np.ndarray, given: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Intersection over union (..., C) from counts (..., C); NaN for a class in neither truth nor prediction."""
    union = given + predicted - hits
    return np.divide(hits, union, out=np.full(union.shape, np.nan), where=union > 0)


def audit_segmentation(
    counts: PixelCounts,
    class_names: Sequence[str],
    train_counts: Int[Tensor, "C"] | None = None,
    rng: torch.Generator | None = None,
    resamples: int = 1000,
    level: float = 0.95,
) -> AuditResult:
    """Accuracy of pixels and overlap of classes, of head, middle and tail, with the calibration of pixels.

    counts: from `count_pixels`. class_names: C names. train_counts (C,): training pixels of each class; with them
    classes are grouped into thirds if the largest has twice the pixels of the smallest. rng: draws of the bootstrap,
    on the CPU; those of seed 0 without. per_sample: values of each image.
    Raises ValueError if there is no labelled pixel, or names and counts do not fit.
    """
    images, classes = counts.hits.shape
    if classes != len(class_names):
        raise ValueError(f"counts are of {classes} classes, but there are {len(class_names)} names")
    if not counts.given.any():
        raise ValueError("no pixel of the test data has a label")
    rng = generator(0, "segmentation") if rng is None else rng
    # how often each image is drawn, the data as they are first
    draws = torch.randint(images, (resamples, images), generator=rng).numpy()
    times = np.zeros((resamples + 1, images))
    times[0] = 1
    np.add.at(times, (np.arange(1, resamples + 1)[:, None], draws), 1)
    hits, given, predicted = (times @ column for column in (counts.hits, counts.given, counts.predicted))
    values = overlap(hits, given, predicted)
    recall = np.divide(hits, given, out=np.full(given.shape, np.nan), where=given > 0)
    present = np.flatnonzero(~np.isnan(values[0]))
    tails = (1 - level) / 2, (1 + level) / 2

    def estimate(column: np.ndarray) -> Estimate:
        low, high = np.nanquantile(column[1:], tails) if np.isfinite(column[1:]).any() else (column[0], column[0])
        return Estimate(float(column[0]), float(min(low, column[0])), float(max(high, column[0])), images)

    def mean_of(column: np.ndarray, chosen: np.ndarray) -> Estimate:
        part = column[:, chosen]
        seen = ~np.isnan(part)
        return estimate(np.divide(np.nansum(part, 1), seen.sum(1), out=np.full(len(part), np.nan), where=seen.any(1)))

    worst = int(present[np.argmin(values[0, present])])
    summary = {
        "mean IoU": mean_of(values, present),
        "accuracy": estimate(hits.sum(1) / np.maximum(given.sum(1), 1)),
        "balanced accuracy": mean_of(recall, np.flatnonzero(given[0] > 0)),
        "worst class IoU": estimate(values[:, worst]),
    }
    notes = [
        f"Accuracy is that of pixels. Intervals are percentiles of {resamples} bootstrap draws of whole images.",
        f"The worst class is '{class_names[worst]}'; picked for being lowest, so some of its distance is chance.",
    ]
    if len(present) < classes:
        missing = [class_names[c] for c in range(classes) if c not in present]
        notes.append(
            f"{len(missing)} of {classes} classes occur in no test image and no prediction: {quoted(missing)}."
        )
    summary |= _thirds(train_counts, present, lambda chosen: mean_of(values, chosen), notes)
    summary["expected calibration error"] = estimate(_calibration_error(times, counts.bins))
    direction = {name: name != "expected calibration error" for name in summary}
    by_class = [estimate(values[:, c]) for c in range(classes)]
    return AuditResult(
        audit="segmentation",
        summary=summary,
        higher_is_better=direction,
        tables=(_class_table(by_class, counts, class_names, train_counts),),
        figures=(_class_chart(by_class, present, class_names), _reliability(times, counts.bins, tails)),
        per_sample={
            "loss": counts.loss,
            "confidence": counts.confidence,
            "correct": counts.hits.sum(1) / np.maximum(counts.given.sum(1), 1),
        },
        notes=tuple(notes),
    )


def _thirds(
    train_counts: Tensor | None,
    present: np.ndarray,
    mean_of: Callable[[np.ndarray], Estimate],
    notes: list[str],
) -> dict[str, Estimate]:
    sizes = None if train_counts is None else train_counts.cpu().numpy()
    if sizes is None or len(sizes) < 3 or sizes.max() < TAIL_RATIO * sizes.min():
        notes.append("Head, middle and tail are left out: fewer than 3 classes, or of similar or unknown size.")
        return {}
    found = {}
    for third, members in zip(THIRDS, thirds_by_count(sizes), strict=True):
        chosen = np.intersect1d(members, present)
        if len(chosen):
            found[f"{third} IoU"] = mean_of(chosen)
    notes.append("Head, middle and tail are thirds of the classes by number of training pixels.")
    return found


def _calibration_error(times: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Expected calibration error (R,) of pixels for each draw of images."""
    number, confidence, hits = (times @ bins[:, :, column] for column in range(3))
    return np.abs(confidence - hits).sum(1) / np.maximum(number.sum(1), 1)


def _class_table(
    by_class: list[Estimate], counts: PixelCounts, names: Sequence[str], train_counts: Tensor | None
) -> Table:
    trained = None if train_counts is None else train_counts.tolist()
    rows = tuple(
        (
            names[c],
            *(() if trained is None else (int(trained[c]),)),
            int(counts.given[:, c].sum()),
            *((found.value, found.low, found.high) if np.isfinite(found.value) else ("absent", "-", "-")),
        )
        for c, found in enumerate(by_class)
    )
    trained_column = () if trained is None else ("training pixels",)
    return Table("Classes", ("class", *trained_column, "test pixels", "IoU", "low", "high"), rows)


def _class_chart(by_class: list[Estimate], present: np.ndarray, names: Sequence[str]) -> Chart:
    labels: list[float | str] = [str(names[c]) for c in present[:40]]
    shown = [by_class[c] for c in present[:40]]
    series = Series(
        "IoU", labels, [e.value for e in shown], [e.low for e in shown],
        [e.high for e in shown],
    )  # fmt: skip
    return Chart(
        "Overlap by class", "bar", "class", "intersection over union", (series,),
        "Intersection over union of each class, with 95 % intervals over images.",
    )  # fmt: skip


def _reliability(times: np.ndarray, bins: np.ndarray, tails: tuple[float, float]) -> Chart:
    number, confidence, hits = (times @ bins[:, :, column] for column in range(3))
    filled = np.flatnonzero(number[0] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, share = confidence[0, filled] / number[0, filled], hits[:, filled] / number[:, filled]
    low, high = np.nanquantile(share[1:], tails, axis=0) if len(share) > 1 else (share[0], share[0])
    series = Series("pixels", mean.tolist(), share[0].tolist(), low.tolist(), high.tolist())
    return Chart(
        "Reliability of pixels", "line", "mean confidence", "accuracy", (series,),
        "Accuracy of pixels against confidence, one point per bin that holds any, with 95 % intervals over images. "
        "Points under the diagonal are overconfident.",
        diagonal=True,
    )  # fmt: skip
