"""Audits: what a model does on data, with intervals. Each is imported when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weathered.audit.accuracy import audit_accuracy
    from weathered.audit.calibration import audit_calibration
    from weathered.audit.corruption import audit_corruption
    from weathered.audit.ood import audit_ood
    from weathered.audit.ood_model import audit_model_ood
    from weathered.audit.result import AuditResult, Chart, Series, Table
    from weathered.audit.sets import audit_sets

__all__ = [
    "AuditResult",
    "Chart",
    "Series",
    "Table",
    "audit_accuracy",
    "audit_calibration",
    "audit_corruption",
    "audit_model_ood",
    "audit_ood",
    "audit_sets",
]

_HOMES = {
    "audit_accuracy": "accuracy",
    "audit_calibration": "calibration",
    "audit_corruption": "corruption",
    "audit_ood": "ood",
    "audit_model_ood": "ood_model",
    "audit_sets": "sets",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'weathered.audit' has no attribute '{name}'")
    return getattr(importlib.import_module(f"weathered.audit.{_HOMES.get(name, 'result')}"), name)
