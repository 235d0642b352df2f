"""The figures by which `weathered compare` can rank, with their direction."""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

from weathered.core.errors import SpecError
from weathered.core.spec import near

SHOTS = r"[1-9]\d*-shot accuracy"
"""How the figures of episodes are called, by the number of shots."""

On = Literal["all", "samples", "pixels", "groups", "captions"]


class Metric(NamedTuple):
    """A figure of finished runs: whether more of it is better, whether it is a share in [0, 1], what it is measured on.

    on: `samples` for data with one label each, `pixels` for masks, `groups` for samples in groups, `captions` for
    images with captions, or `all` but these.
    audit: the one that measures it, None for what every run measures itself.
    """

    name: str
    higher_is_better: bool = True
    share: bool = True
    on: On = "all"
    audit: str | None = None

    def measured_on(self, pixels: bool, groups: bool, captions: bool = False) -> bool:
        """Whether test data with a class for each pixel, with groups, or with captions, may give it."""
        there = {
            "all": True,
            "samples": not pixels,
            "pixels": pixels,
            "groups": groups and not pixels,
            "captions": captions,
        }
        return there[self.on]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy"),
        Metric("balanced accuracy"),
        Metric("worst class accuracy", on="samples"),
        Metric("head accuracy", on="samples"),
        Metric("middle accuracy", on="samples"),
        Metric("tail accuracy", on="samples"),
        Metric("mean IoU", on="pixels"),
        Metric("worst class IoU", on="pixels"),
        Metric("head IoU", on="pixels"),
        Metric("middle IoU", on="pixels"),
        Metric("tail IoU", on="pixels"),
        Metric("worst group accuracy", on="groups"),
        Metric("group accuracy gap", higher_is_better=False, on="groups"),
        Metric("equal opportunity gap", higher_is_better=False, on="groups"),
        Metric("last accuracy", on="samples"),
        Metric("average accuracy over phases", on="samples"),
        Metric("image to text recall at 1", on="captions"),
        Metric("text to image recall at 1", on="captions"),
        Metric("image to text recall at 5", on="captions"),
        Metric("text to image recall at 5", on="captions"),
        Metric("expected calibration error", higher_is_better=False),
        Metric("class-wise calibration error", higher_is_better=False, on="samples"),
        Metric("negative log likelihood", higher_is_better=False, share=False, on="samples"),
        Metric("mean corruption accuracy", on="samples", audit="corruption"),
        Metric("worst corruption accuracy", on="samples", audit="corruption"),
        Metric("area under risk-coverage", higher_is_better=False, on="samples", audit="selective"),
        Metric("Brier score", higher_is_better=False, share=False, on="samples"),
    )
}


def metric_named(name: str) -> Metric:
    """The metric of this name, such as `5-shot accuracy` for any number. Raises SpecError for one that is not known."""
    if re.fullmatch(SHOTS, name):
        return Metric(name, on="samples")
    if name not in METRICS:
        raise SpecError(f"there is no metric '{name}'.{near(name, METRICS)} Known are {', '.join(METRICS)}.")
    return METRICS[name]


def usual_metric(found: Iterable[str]) -> Metric:
    """What arms are ranked by when nobody says: mean IoU on masks, the first few-shot accuracy of episodes, recall of
    captions at 1 where arms were trained on captions, otherwise accuracy.
    """
    found = list(found)
    if few := [name for name in found if re.fullmatch(SHOTS, name)]:
        return metric_named(few[0])
    first = ("mean IoU", "image to text recall at 1")
    return METRICS[next((name for name in first if name in found), "accuracy")]
