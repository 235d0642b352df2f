"""What one part of the label audit adds to its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from weathered.audit.result import Table
from weathered.stats import Estimate


@dataclass(frozen=True)
class Findings:
    """Figures with their directions, tables and notes, as in `AuditResult`."""

    summary: Mapping[str, Estimate] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
