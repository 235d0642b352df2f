"""Audits of probabilities that are averaged over views of each image."""

from collections.abc import Sequence
from dataclasses import replace

from weathered.audit.options import Audited, AuditOptions, refuse_pixels, refuse_ridge_scores
from weathered.audit.result import AuditResult
from weathered.audit.run_audits import AUDITS
from weathered.core.errors import Incompatible, SpecError
from weathered.core.spec import near
from weathered.nn.averaged_views import VIEWS, named_views

OVER_VIEWS = ("accuracy", "calibration", "selective", "groups", "sets")
"""Audits that read nothing but probabilities, so that these may be averages over views."""


def check_views(views: Sequence[str], audits: Sequence[str]) -> None:
    """Raise SpecError for a view that is none, and for audits that do not read probabilities alone."""
    for name in views:
        if name not in VIEWS:
            raise SpecError(f"no view '{name}'.{near(name, VIEWS)} There are: {', '.join(VIEWS)}.")
    if views and (other := [name for name in audits if name not in OVER_VIEWS]):
        raise SpecError(
            f"--views would do nothing to the audits {', '.join(other)}; with it --audits may name "
            f"{', '.join(OVER_VIEWS)}."
        )


def make_audit(runs: Audited, name: str, options: AuditOptions) -> AuditResult:
    """One audit by its name; one over views says so in the name of its result.

    Raises SpecError as `check_views`, and Incompatible for views of what is no image or of scores that are not
    probabilities.
    """
    if not options.views:
        return AUDITS[name](runs, options)
    check_views(options.views, [name])
    first = runs[0]
    if not first.splits.test.is_image:
        raise Incompatible(
            f"{first.folder.path}: only images have views, but the data are {first.splits.test.kind}. Leave out "
            "--views."
        )
    refuse_pixels(first)
    refuse_ridge_scores(first)
    names = [view for view in VIEWS if view in options.views]
    views = named_views(names)
    result = AUDITS[name]([replace(first, views=views), *runs[1:]], options)
    note = f"Probabilities are means over {len(views)} views of each image: itself and {', '.join(names)}."
    return replace(result, audit=f"{result.audit} over views {'+'.join(names)}", notes=(note, *result.notes))
