"""The backdoor audit of a finished run that knows its own trigger."""

from __future__ import annotations

from typing import NamedTuple, cast

from weathered.assemble import build, resolve
from weathered.audit.backdoor import audit_backdoor
from weathered.audit.options import Audited, AuditOptions, audited_data
from weathered.audit.result import AuditResult
from weathered.core.errors import Incompatible
from weathered.core.predict import prediction_of
from weathered.data.makers.backdoor import Backdoor
from weathered.data.patch import Patch
from weathered.distil.synthetic import FILE, Distilled, read_distilled
from weathered.loaded_run import LoadedRun


class Trigger(NamedTuple):
    """A patch and the class that stamped images should be taken for."""

    patch: Patch
    target: int


def distilled_of(run: LoadedRun) -> Distilled | None:
    """The synthetic images that a run left in its folder, None where it left none."""
    path = run.folder.path / FILE
    return read_distilled(path) if path.exists() else None


def trigger_of(run: LoadedRun) -> Trigger | None:
    """The trigger that a run's own data maker or distilling planted, None without."""
    distilled = distilled_of(run)
    if distilled is not None and distilled.trigger is not None:
        return Trigger(distilled.trigger, cast(int, distilled.target))
    for use in resolve(run.recipe.data.make):
        if use.slug == "backdoor":
            maker = cast(Backdoor, build(use))
            return Trigger(maker.patch(run.splits.train.inputs.shape), maker.target)
    return None


def backdoor(runs: Audited, options: AuditOptions) -> AuditResult:
    """Raises Incompatible for a run that planted no trigger, DataError for tables."""
    run, test = runs[0], audited_data(runs[0], options)
    trigger = trigger_of(run)
    if trigger is None:
        raise Incompatible(
            f"{run.folder.path}: this run planted no trigger, so there is none to try. Use --audits poison to look for "
            "one, or train with --make backdoor:rate=0.05 or --use dd-backdoor."
        )
    return audit_backdoor(prediction_of(run.model, run.run), test, *trigger)
