"""The table of all methods: name, where it lives, which slot it fills, what it is for. Imports nothing heavy."""

from weathered.registry.afterwards import AFTERWARDS
from weathered.registry.data_makers import DATA_MAKERS
from weathered.registry.entry import NOISE, PROBLEMS, TAIL, Entry
from weathered.registry.parts import PARTS
from weathered.registry.procedures import PROCEDURES

__all__ = ["ALIASES", "ENTRIES", "EXPORTS", "NOISE", "PROBLEMS", "TABLE", "TAIL", "TRAINING_SLOTS", "Entry"]

ENTRIES: tuple[Entry, ...] = (*PARTS, *PROCEDURES, *AFTERWARDS, *DATA_MAKERS)

TABLE: dict[str, Entry] = {entry.slug: entry for entry in ENTRIES}
ALIASES = {"ce": "cross-entropy", "generalized-cross-entropy": "gce", "sce": "symmetric-cross-entropy"}

TRAINING_SLOTS = ("sampler", "transform", "procedure", "loss", "reweight", "term", "stepper", "probe")

EXPORTS = {
    "AttackEnsemble": "weathered.attacks.attack_ensemble:AttackEnsemble",
    "Batch": "weathered.core.batch:Batch",
    "Dataset": "weathered.data.dataset:Dataset",
    "Procedure": "weathered.core.procedure:Procedure",
    "Run": "weathered.core.run:Run",
    "Settings": "weathered.core.settings:Settings",
    "Target": "weathered.core.target:Target",
    "Traits": "weathered.core.facts:Traits",
    "build_model": "weathered.nn.build:build_model",
    "fit": "weathered.core.fit:fit",
    "load": "weathered.data.sources:load",
    "load_pair": "weathered.data.sources:load_pair",
    "TemperatureScaling": "weathered.procedures.temperature_scaling:TemperatureScaling",
    "load_run": "weathered.loaded_run:load_run",
    "train": "weathered.training:train",
    "compare": "weathered.comparison:compare",
    **{entry.class_name: entry.path for entry in ENTRIES if entry.path},
}
"""What `from weathered import NAME` finds, imported when asked for."""
