"""Data of every kind in one shape: sources, splits, makers of known flaws, corruptions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weathered.data.corruptions import CORRUPTIONS, corrupt
    from weathered.data.dataset import Dataset, Inputs, MemoryInputs
    from weathered.data.loader import iterate
    from weathered.data.makers import (
        AsymmetricNoise,
        Corrections,
        Corruption,
        InstanceNoise,
        LongTail,
        OpenSetNoise,
        SymmetricNoise,
    )
    from weathered.data.sources import load, load_pair
    from weathered.data.splits import validation_split
    from weathered.data.stream import StreamInputs

_WHERE = {
    "AsymmetricNoise": "makers",
    "CORRUPTIONS": "corruptions",
    "Corrections": "makers",
    "Corruption": "makers",
    "Dataset": "dataset",
    "Inputs": "dataset",
    "InstanceNoise": "makers",
    "LongTail": "makers",
    "MemoryInputs": "dataset",
    "OpenSetNoise": "makers",
    "StreamInputs": "stream",
    "SymmetricNoise": "makers",
    "corrupt": "corruptions",
    "iterate": "loader",
    "load": "sources",
    "load_pair": "sources",
    "validation_split": "splits",
}

__all__ = [
    "CORRUPTIONS",
    "AsymmetricNoise",
    "Corrections",
    "Corruption",
    "Dataset",
    "Inputs",
    "InstanceNoise",
    "LongTail",
    "MemoryInputs",
    "OpenSetNoise",
    "StreamInputs",
    "SymmetricNoise",
    "corrupt",
    "iterate",
    "load",
    "load_pair",
    "validation_split",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"weathered.data.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
