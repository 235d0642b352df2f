"""What audits of finished runs share: what a user may ask, the test set that it concerns, and whom it does not fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from weathered.attacks.base import Norm
from weathered.audit.exchanges import Region
from weathered.audit.labels.of_run import LabelOptions
from weathered.audit.shortcut import GRID
from weathered.core.errors import Incompatible
from weathered.core.rng import generator
from weathered.core.watch import Progress
from weathered.data.dataset import Dataset
from weathered.incremental.recipe_run import AnalyticClassifier
from weathered.loaded_run import LoadedRun
from weathered.nn.two_towers import TwoTowers
from weathered.training import truth


@dataclass(frozen=True)
class AuditOptions:
    """What a user may say of the audits: outlier data by spec, score names, a limit of samples, certified noise, and
    what the label audit is told. scores: by default those of `default_scores`. progress: called while an audit goes on.
    sigma: of randomised smoothing; without, a network that certifies itself does, and others get 0.25.
    views: names of the views of each image over which probabilities are averaged, none for the image alone.
    attacks, epsilon, norm: of the robustness audit, by default those of `default_attacks`. grid, cues: of the
    shortcut audit, cells of a side and regions to try besides. new: sources of data that the shift audit compares.
    announce: called with how long an audit may take, before it starts.
    """

    ood: tuple[str, ...] = ()
    scores: tuple[str, ...] | None = None
    limit: int | None = None
    sigma: float | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    progress: Progress | None = None
    views: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    epsilon: float = 8 / 255
    norm: Norm = "linf"
    grid: int = GRID
    cues: tuple[Region, ...] = ()
    announce: Callable[[str], None] | None = None
    new: tuple[str, ...] = ()


Audited = Sequence[LoadedRun]


def audited_data(run: LoadedRun, options: AuditOptions, pixels: bool = False, captions: bool = False) -> Dataset:
    """The test set with the labels that count, cut to the limit by random draw.

    pixels, captions: whether the audit reads masks or captions; others are refused where the model labels pixels or
    gives no classes.
    """
    if not pixels:
        refuse_pixels(run)
    if not captions:
        refuse_towers(run)
    test = run.splits.test.replace(labels=truth(run.splits), clean_labels=None)
    if options.limit is None or options.limit >= len(test):
        return test
    rng = generator(run.recipe.settings.seed, "audit limit")
    return test.select(torch.randperm(len(test), generator=rng)[: options.limit].sort().values)


def refuse_towers(run: LoadedRun) -> None:
    """Raise Incompatible for a model without classes."""
    if isinstance(run.model, TwoTowers):
        raise Incompatible(
            f"{run.folder.path}: this audit reads classes, but the model embeds images and captions. Use --audits "
            "retrieval."
        )


def refuse_pixels(run: LoadedRun) -> None:
    """Raise Incompatible for a run on masks."""
    if run.splits.test.is_segmentation:
        raise Incompatible(
            f"{run.folder.path}: this audit reads one label for each sample, but these data have one for each pixel. "
            "Use --audits segmentation."
        )


def refuse_ridge_scores(run: LoadedRun) -> None:
    """Raise Incompatible for a run whose scores are not probabilities."""
    if isinstance(run.model, AnalyticClassifier):
        raise Incompatible(
            f"{run.folder.path}: the scores of an incremental ridge classifier are not probabilities, which this audit "
            "needs. Leave it out."
        )
