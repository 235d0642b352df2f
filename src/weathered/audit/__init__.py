"""Audits: what a model does on data, with intervals. Each is imported when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weathered.audit.accuracy import audit_accuracy
    from weathered.audit.calibration import audit_calibration
    from weathered.audit.corruption import audit_corruption
    from weathered.audit.groups import audit_groups
    from weathered.audit.ood import audit_ood
    from weathered.audit.ood_model import audit_model_ood
    from weathered.audit.rejection import audit_rejection
    from weathered.audit.result import AuditResult, Chart, Series, Table
    from weathered.audit.segmentation import audit_segmentation, count_pixels
    from weathered.audit.selective import audit_selective
    from weathered.audit.sets import audit_sets

__all__ = [
    "AuditResult",
    "Chart",
    "Series",
    "Table",
    "audit_accuracy",
    "audit_calibration",
    "audit_corruption",
    "audit_groups",
    "audit_model_ood",
    "audit_ood",
    "audit_rejection",
    "audit_segmentation",
    "audit_selective",
    "audit_sets",
    "count_pixels",
]

_HOMES = {
    "audit_accuracy": "accuracy",
    "audit_calibration": "calibration",
    "audit_corruption": "corruption",
    "audit_ood": "ood",
    "audit_model_ood": "ood_model",
    "audit_groups": "groups",
    "audit_rejection": "rejection",
    "audit_segmentation": "segmentation",
    "audit_selective": "selective",
    "audit_sets": "sets",
    "count_pixels": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'weathered.audit' has no attribute '{name}'")
    return getattr(importlib.import_module(f"weathered.audit.{_HOMES.get(name, 'result')}"), name)
