"""What a report is made of: plain records that a comparison or a single run fills."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weathered.stats import Comparison, Estimate


@dataclass(frozen=True)
class Method:
    """One method of an arm: its slug and all its options, defaults included."""

    slug: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportArm:
    """One arm: what it used and what it reached.

    values: the metric of each seed. estimate: their mean with interval. comparison: paired with the baseline over the
    same seeds; None for the baseline itself and for a single run. seconds: mean time of a run. figures: all that was
    measured of each seed, mean and interval.
    """

    name: str
    methods: tuple[Method, ...]
    values: tuple[float, ...]
    estimate: Estimate
    seconds: float
    comparison: Comparison | None = None
    figures: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """A quantity over epochs, mean over seeds, with its interval where there are several seeds."""

    arm: str
    epochs: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ArmAudit:
    """One audit of one arm, as `AuditResult.to_json()` gives it."""

    arm: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class WorstSample:
    """A sample to look at. name: its row or file. image: uint8 (C, H, W), or None for rows of a table.

    label, predicted, truth: names of classes; truth is None where it is not known. loss in nats, confidence in [0, 1].
    """

    name: str
    label: str
    predicted: str
    loss: float
    confidence: float
    truth: str | None = None
    image: np.ndarray | None = None


@dataclass(frozen=True)
class ReportInput:
    """Everything a report shows.

    metric: what `values` measure, in words. data: what it was measured on, in words. percent: the metric is a share in
    [0, 1], shown in per cent. baseline: the arm that others are compared with; None for a single run. arms: in any
    order. curve_metric: what `test_curves` show, in words; curve_percent: whether that is a share.
    test_note, loss_note: sentences below the curves, on how to read them. worst: the most suspicious or worst samples,
    worst first; worst_title: what they are. recipe, environment: nested settings. commands: what reproduces the report.
    notes: sentences about data and runs.
    Raises ValueError if there is no arm, a name repeats, the baseline is not an arm, or an arm has no values.
    """

    title: str
    metric: str
    data: str
    arms: tuple[ReportArm, ...]
    baseline: str | None = None
    percent: bool = True
    higher_is_better: bool = True
    test_curves: tuple[Curve, ...] = ()
    curve_metric: str = "test accuracy"
    curve_percent: bool = True
    test_note: str = ""
    loss_note: str = ""
    loss_curves: tuple[Curve, ...] = ()
    audits: tuple[ArmAudit, ...] = ()
    worst: tuple[WorstSample, ...] = ()
    worst_title: str = "Worst samples"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a report needs at least one arm and different names, got {names}")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"the baseline '{self.baseline}' is not among the arms: {', '.join(names)}")
        for arm in self.arms:
            if not arm.values:
                raise ValueError(f"arm '{arm.name}' has no values; leave arms that failed out and say so in the notes")
            if arm.comparison is None and len(names) > 1 and arm.name != self.baseline:
                raise ValueError(f"arm '{arm.name}' is not the baseline, so it needs a comparison with it")

    def ranking(self) -> list[ReportArm]:
        """Arms from best to worst mean."""
        sign = -1 if self.higher_is_better else 1
        return sorted(self.arms, key=lambda arm: sign * arm.estimate.value)
