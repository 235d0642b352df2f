"""The figures by which `weathered compare` can rank, with their direction."""

from collections.abc import Iterable
from typing import NamedTuple

from weathered.core.errors import SpecError
from weathered.core.spec import near


class Metric(NamedTuple):
    """A figure of every finished run: whether more of it is better, and whether it is a share in [0, 1]."""

    name: str
    higher_is_better: bool = True
    share: bool = True

    def measured_on(self, pixels: bool, groups: bool) -> bool:
        """Whether test data with a class for each pixel, or with groups, may give it."""
        if "group" in self.name or self.name == "equal opportunity gap":
            return groups and not pixels
        return pixels if "IoU" in self.name else not (pixels and self.name in OF_SAMPLES)


OF_SAMPLES = {
    *("worst class accuracy", "head accuracy", "middle accuracy", "tail accuracy", "class-wise calibration error"),
    *("negative log likelihood", "Brier score", "last accuracy", "average accuracy over phases"),
}
"""What is not measured on pixels."""

METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy"),
        Metric("balanced accuracy"),
        Metric("worst class accuracy"),
        Metric("head accuracy"),
        Metric("middle accuracy"),
        Metric("tail accuracy"),
        Metric("mean IoU"),
        Metric("worst class IoU"),
        Metric("head IoU"),
        Metric("middle IoU"),
        Metric("tail IoU"),
        Metric("worst group accuracy"),
        Metric("last accuracy"),
        Metric("average accuracy over phases"),
        Metric("expected calibration error", higher_is_better=False),
        Metric("class-wise calibration error", higher_is_better=False),
        Metric("negative log likelihood", higher_is_better=False, share=False),
        Metric("group accuracy gap", higher_is_better=False),
        Metric("equal opportunity gap", higher_is_better=False),
        Metric("Brier score", higher_is_better=False, share=False),
    )
}


def metric_named(name: str) -> Metric:
    """The metric of this name. Raises SpecError for one that is not known."""
    if name not in METRICS:
        raise SpecError(f"there is no metric '{name}'.{near(name, METRICS)} Known are {', '.join(METRICS)}.")
    return METRICS[name]


def usual_metric(found: Iterable[str]) -> Metric:
    """What arms are ranked by when nobody says: mean IoU where it was measured, as on masks, otherwise accuracy."""
    return METRICS["mean IoU" if "mean IoU" in found else "accuracy"]
