"""weathered: train models on data nobody can fully trust, and prove how they behave."""

import importlib
from importlib.metadata import version
from typing import Any

from weathered.registry import EXPORTS

__version__ = version("weathered")
__all__ = ["__version__", *EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module 'weathered' has no attribute '{name}'")
    module, _, attribute = EXPORTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
