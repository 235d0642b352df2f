"""Audits as they are kept beside a run, in its audit.json."""

from collections.abc import Callable, Sequence
from typing import Any

from weathered.audit.options import Audited, AuditOptions
from weathered.audit.over_views import make_audit
from weathered.audit.result import AuditResult, plain
from weathered.audit.run_audits import AUDITS
from weathered.core.errors import SpecError, WeatheredError
from weathered.core.spec import near
from weathered.loaded_run import load_run
from weathered.store import RunFolder

FILE = "audit.json"


def check_audits(names: Sequence[str]) -> None:
    """Raise SpecError for a name that is no audit, with a suggestion."""
    for name in names:
        if name in ("few-shot", "incremental"):
            raise SpecError(
                f"the audit {name} is made while training, with a method for it in the recipe, and kept in the run's "
                f"{FILE}; leave it out here."
            )
        if name not in AUDITS:
            raise SpecError(f"no audit '{name}'.{near(name, AUDITS)} There are: {', '.join(AUDITS)}.")


def kept_audits(folder: RunFolder) -> dict[str, Any]:
    """What is kept of each audit by its name; empty where none was made."""
    return folder.read_json(FILE) if (folder.path / FILE).exists() else {}


def samples_of(kept: dict[str, Any] | None) -> int:
    """The samples of an audit as it is kept, 0 where it was not made."""
    return max((int(estimate["n"]) for estimate in kept["summary"].values()), default=0) if kept else 0


def audit_and_keep(runs: Audited, name: str, options: AuditOptions) -> tuple[AuditResult, int | None]:
    """Make one audit and keep it beside the first run.

    Returns the result and, where a fuller one under no limit of samples is kept in its place, the samples of that.
    Raises WeatheredError naming the audit.
    """
    try:
        result = make_audit(runs, name, options)
    except WeatheredError:
        raise
    except ValueError as error:
        raise WeatheredError(f"audit '{name}': {error}.") from error
    folder = runs[0].folder
    # read only now, because another audit of this run may have ended meanwhile
    kept, made = kept_audits(folder), plain(result.to_json())
    if options.limit is not None and (fuller := samples_of(kept.get(result.audit))) > samples_of(made):
        return result, fuller
    folder.write_json(FILE, {**kept, result.audit: made})
    return result, None


def audit_where_missing(
    folders: Sequence[RunFolder],
    names: Sequence[str],
    limit: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> None:
    """Make the audits that finished runs lack, or have on fewer samples.

    limit: of test samples, drawn alike for runs of one seed. watch: told how many of how many audits are done.
    """
    open_audits = [(folder, name) for folder in folders for name in names if not _audited(folder, name, limit)]
    for done, (folder, name) in enumerate(open_audits):
        if watch is not None:
            watch(done, len(open_audits))
        audit_and_keep([load_run(folder.path)], name, AuditOptions(limit=limit))
    if watch is not None and open_audits:
        watch(len(open_audits), len(open_audits))


def _audited(folder: RunFolder, name: str, limit: int | None) -> bool:
    kept = kept_audits(folder)
    size = max(samples_of(kept.get(own)) for own in ("accuracy", "segmentation"))
    return samples_of(kept.get(name)) >= (size if limit is None else min(limit, size)) > 0
