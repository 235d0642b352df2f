"""Shortcuts: whether a small region of an image, or its colour, outvotes the rest.

Each test image is paired with a donor, a random one of those that the model takes for another class. A region of the
image is exchanged for the same region of its donor, and so is the colour as a whole; the share of predictions that go
over to the donor's is how much is decided there. Regions are the cells of a grid, squares of 2 x 2 cells where these
are at most a quarter of the image, and those that are named. With w the region's share of all squared differences
between images and donors, a suspect moves more than (1 + w) / 2 of the predictions: it outvotes the rest of the image
by more than the difference it makes. Colour has w = 0. Beside that, accuracy with the cells of the grid shuffled
within each image, which breaks shapes, and in grey.

Pairing by predictions, not labels, finds a cue too where it contradicts the label. Limits: exchanging everything moves
all predictions; a model that ignores a region is moved by none. Source of the idea of shuffled patches: Zhang and Zhu,
"Interpreting Adversarially Trained Convolutional Neural Networks", ICML 2019; the exchange is this library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weathered.audit.exchanges import (
    Region,
    draw_donors,
    exchanged,
    grid_regions,
    in_grey,
    shuffled,
    with_colour_of,
)
from weathered.audit.pieces import Piece, Pieces
from weathered.audit.result import AuditResult, Chart, Series, Table, quoted
from weathered.core.errors import DataError, NonFinite, SpecError
from weathered.core.rng import generator
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.stats import Estimate, proportion_interval, sample_mean_interval

BLOCK = 256
GRID = 4
MOST_BARS = 20

Predict = Callable[[Float[Tensor, "B channels H W"]], Float[Tensor, "B classes"]]
"""Images in [0, 1] to logits."""

Change = Callable[[Tensor, Tensor, int], Tensor]
"""Images (B, C, H, W), their donors and the number of the block to changed images."""


@dataclass(frozen=True)
class Look:
    """One exchange in all test images: what it is called, its region if it has one, whom it moved, whom it left right.

    weight in [0, 1]: the region's share of all squared differences between images and donors.
    """

    name: str
    region: Region | None
    weight: float
    moved: Bool[Tensor, "N"]
    correct: Bool[Tensor, "N"]

    @property
    def share(self) -> Estimate:
        """Predictions that went over to the donor's."""
        return proportion_interval(float(self.moved.sum()), len(self.moved))

    @property
    def accuracy(self) -> Estimate:
        return proportion_interval(float(self.correct.sum()), len(self.correct))

    @property
    def threshold(self) -> float:
        """The share that it would have to move to be a suspect."""
        return (1 + self.weight) / 2

    def is_suspect(self, looks: int) -> bool:
        """Whether it moves more than the threshold, by an interval that holds for all looks together."""
        return proportion_interval(float(self.moved.sum()), len(self.moved), 1 - 0.05 / looks).low > self.threshold


def check_asked(dataset: Dataset, grid: int, cues: Sequence[Region]) -> None:
    """Raise DataError for data that are no images or none, SpecError for a grid or a region that does not fit."""
    if not dataset.is_image or not len(dataset):
        raise DataError(f"{dataset.name}: the shortcut audit needs at least one image.")
    _, height, width = dataset.inputs.shape
    if not 2 <= grid <= min(height, width):
        raise SpecError(f"grid must be in [2, {min(height, width)}] for {height} x {width} pixels, got {grid}.")
    for cue in cues:
        if cue.top + cue.height > height or cue.left + cue.width > width:
            raise SpecError(f"the cue {cue} does not fit images of {height} x {width} pixels.")


def passes(shape: tuple[int, ...], grid: int, cues: int) -> int:
    """How often the audit sends all test images through the model."""
    channels, height, width = shape
    colours = 2 if channels == 3 else 0
    return 2 + colours + len(grid_regions(height, width, grid)) + cues


def audit_shortcut(
    predict: Predict,
    dataset: Dataset,
    seed: int,
    grid: int = GRID,
    cues: Sequence[Region] = (),
    pieces: Pieces | None = None,
    watch: Progress | None = None,
) -> AuditResult:
    """Which region of the images, and whether colour, decides what the model says.

    predict: images (B, C, H, W) float32 in [0, 1] -> logits, in evaluation mode. dataset: test images with the labels
    to score against. seed: draws donors and orders of cells. grid >= 2: cells of a side. cues: regions to try besides.
    pieces: where what is done is kept. watch: told how many changed versions are done. Memory: a block of 256 images.
    per_sample: correct, shuffled_correct, moved_by_strongest, moves (regions of the grid that move the prediction).
    Raises DataError for data that are no images or none, SpecError for a grid or a region that does not fit,
    ValueError if the model takes all images for one class, NonFinite if a logit is not finite.
    """
    check_asked(dataset, grid, cues)
    channels, height, width = dataset.inputs.shape
    pieces, done = pieces or Pieces(), 0
    whole, donors = passes(dataset.inputs.shape, grid, len(cues)), torch.arange(len(dataset))

    def seen(name: str, change: Change) -> Piece:
        nonlocal done
        made = pieces.get(name, lambda: _predictions(predict, dataset, donors, name, change))
        if watch is not None:
            watch("shortcut", done, whole)
        done += 1
        return made

    plain = seen("plain", lambda x, *_: x)["predicted"]
    donors = draw_donors(plain, generator(seed, "shortcut donors"))
    labels = dataset.labels.cpu()

    def look(name: str, piece: str, region: Region | None, change: Change) -> Look:
        found = seen(piece, change)
        changed, whole = found["difference"].tolist()
        weight = changed / whole if region is not None and whole else 0.0
        return Look(name, region, weight, found["predicted"] == plain[donors], found["predicted"] == labels)

    def of_region(region: Region, named: bool) -> Look:
        what = f"cue {region}" if named else "region"
        return look(what, f"region-{str(region).replace(',', '-')}", region, lambda x, y, _: exchanged(x, y, region))

    mixed = seen("shuffled", lambda x, _, block: shuffled(x, grid, generator(seed, "shortcut cells", block)))[
        "predicted"
    ]
    grey, colour = None, ()
    if channels == 3:
        grey = seen("grey", lambda x, *_: in_grey(x))["predicted"] == labels
        colour = (look("colour", "colour", None, lambda x, y, _: with_colour_of(x, y)),)
    regions = tuple(of_region(region, False) for region in grid_regions(height, width, grid))
    return _result(
        plain == labels, mixed == labels, grey, regions, colour, tuple(of_region(cue, True) for cue in cues),
        (height, width),
    )  # fmt: skip


@torch.no_grad()
def _predictions(predict: Predict, dataset: Dataset, donors: Tensor, name: str, change: Change) -> Piece:
    """Predictions (N,) for changed images, and the squared differences that the change and the donors make, summed."""
    found, difference = [], torch.zeros(2, dtype=torch.float64)
    for number, rows in enumerate(torch.arange(len(dataset)).split(BLOCK)):
        x, other = dataset.floats(rows), dataset.floats(donors[rows])
        changed = change(x, other, number)
        difference += torch.stack([(changed - x).double().square().sum(), (other - x).double().square().sum()])
        logits = predict(changed)
        if not torch.isfinite(logits).all():
            row = int(rows[0]) + int((~torch.isfinite(logits)).any(1).nonzero()[0])
            raise NonFinite(f"{dataset.name}: the logits for row {row} are not finite ({name}).")
        found.append(logits.argmax(1).cpu())
    return {"predicted": torch.cat(found), "difference": difference}


def _ranked(looks: Sequence[Look]) -> list[Look]:
    """The most moved first, of equal ones the smallest."""
    area = {id(look): look.region.height * look.region.width if look.region else 0 for look in looks}
    return sorted(looks, key=lambda look: (-look.share.value, area[id(look)]))


def _result(
    plain: Tensor,
    mixed: Tensor,
    grey: Tensor | None,
    regions: tuple[Look, ...],
    colour: tuple[Look, ...],
    cues: tuple[Look, ...],
    size: tuple[int, int],
) -> AuditResult:
    n, strongest, everything = len(plain), _ranked(regions)[0], (*regions, *colour, *cues)
    summary = {
        "moved by the strongest region": strongest.share,
        **{f"moved by {look.name}": look.share for look in (*colour, *cues)},
        "accuracy on unchanged images": proportion_interval(float(plain.sum()), n),
        "accuracy with patches shuffled": proportion_interval(float(mixed.sum()), n),
    }
    if grey is not None:
        summary["accuracy in grey"] = proportion_interval(float(grey.sum()), n)
    suspects = [look for look in _ranked(everything) if look.is_suspect(len(everything))]
    return AuditResult(
        audit="shortcut",
        summary=summary,
        higher_is_better={name: not name.startswith("moved") for name in summary},
        tables=(_suspect_table(everything, plain, size),),
        figures=(_chart(_ranked(everything)),),
        per_sample={
            "correct": plain.numpy(),
            "shuffled_correct": mixed.numpy(),
            "moved_by_strongest": strongest.moved.numpy(),
            "moves": torch.stack([look.moved for look in regions]).sum(0).numpy(),
        },
        notes=(_verdict(suspects, len(everything), strongest), *NOTES, *([] if colour else [GREY])),
    )


NOTES = (
    "What moves a prediction is what the model reads it from. Whether that is a shortcut or the object itself, only "
    "people can say who look at the region; and a shortcut that is spread over the image, of another shape than the "
    "regions, or absent from these test images is not found.",
    "Accuracy with patches shuffled that stays high says that the model reads small pieces and not their arrangement; "
    "low says little, since shuffled images are like none it was trained on.",
    "Each region was exchanged for that of one random donor. Exchanging also breaks images at the edges of the region.",
)
GREY = "The images have one channel, or other than three, so colour was not tried."


def _verdict(suspects: Sequence[Look], looks: int, strongest: Look) -> str:
    if not suspects:
        return (
            f"No suspect: of {looks} regions and cues none moves more predictions than the difference it makes to the "
            f"images explains. The strongest region, {strongest.region}, moves {strongest.share.value:.1%}, and would "
            f"have to move more than {strongest.threshold:.1%}."
        )
    names = quoted([f"region {look.region}" if look.name == "region" else look.name for look in suspects], 3)
    return (
        f"{len(suspects)} of {looks} regions and cues are suspects, which outvote the rest of the image: {names}, as "
        f"top,left,height,width in pixels. The first moves {suspects[0].share.value:.1%} of the predictions."
    )


def _suspect_table(looks: Sequence[Look], plain: Tensor, size: tuple[int, int]) -> Table:
    rows = []
    for look in _ranked(looks):
        drop = sample_mean_interval((plain.int() - look.correct.int()).double().numpy())
        place = ("-",) * 4 if look.region is None else (*map(int, _place(look.region)),)
        share = 1.0 if look.region is None else look.region.height * look.region.width / (size[0] * size[1])
        suspect = "yes" if look.is_suspect(len(looks)) else "no"
        rows.append((look.name, *place, share, *look.share, look.threshold, suspect, look.accuracy.value, *drop[:3]))
    columns = ("top", "left", "height", "width", "share of pixels", "moved", "low", "high", "n")
    ends = ("suspect from", "suspect", "accuracy", "accuracy lost", "lost, low", "lost, high")
    return Table("What moves predictions to the donor's, by exchange", ("exchanged", *columns, *ends), tuple(rows))


def _place(region: Region) -> tuple[int, int, int, int]:
    return region.top, region.left, region.height, region.width


def _chart(ranked: Sequence[Look]) -> Chart:
    shown = ranked[:MOST_BARS]
    shares = [look.share for look in shown]
    names = [str(look.region) if look.name == "region" else look.name for look in shown]
    ends = f"from {shares[0].value:.3f} for {names[0]} to {shares[-1].value:.3f} for {names[-1]}"
    return Chart(
        title="Predictions moved by an exchange",
        kind="bar",
        x_label="exchanged region (top,left,height,width), most moved first",
        y_label="share that goes over to the donor's class",
        series=(Series("moved", names, [s.value for s in shares], [s.low for s in shares], [s.high for s in shares]),),
        description=f"Share of predictions moved, with 95 % intervals, {ends}.",
    )
