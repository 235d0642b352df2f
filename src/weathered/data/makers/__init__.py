"""Data makers: known flaws put into a data set, the exact truth kept beside them; one file each."""

from weathered.data.makers.asymmetric_noise import AsymmetricNoise
from weathered.data.makers.backdoor import Backdoor
from weathered.data.makers.corrections import Corrections
from weathered.data.makers.corruption import Corruption
from weathered.data.makers.instance_noise import InstanceNoise
from weathered.data.makers.long_tail import LongTail
from weathered.data.makers.open_set_noise import OpenSetNoise
from weathered.data.makers.shortcut import Shortcut
from weathered.data.makers.symmetric_noise import SymmetricNoise

__all__ = [
    "AsymmetricNoise",
    "Backdoor",
    "Corrections",
    "Corruption",
    "InstanceNoise",
    "LongTail",
    "OpenSetNoise",
    "Shortcut",
    "SymmetricNoise",
]
