"""Where data come from; one file per source, `load` and `load_pair` for all."""

from weathered.data.sources.load import load, load_pair
from weathered.data.splits import validation_split

__all__ = ["load", "load_pair", "validation_split"]
