"""What a run folder says of where its run came from, and the refusal to go on with it from anywhere else."""

import fcntl
import hashlib
import inspect
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from weathered.assemble import Use, import_part, resolve
from weathered.core.checkpoint import newest_checkpoint
from weathered.core.errors import DataError, WeatheredError
from weathered.core.run import Run
from weathered.recipe import Recipe
from weathered.store import RunFolder


def check_same_data(folder: RunFolder, fingerprint: str) -> None:
    """Refuse a folder whose run was made from other files than those that are there now."""
    if (folder.path / "run.json").exists() and folder.read_json("run.json")["data_fingerprint"] != fingerprint:
        raise DataError(
            f"the data have changed since {folder.path} was trained on them. Use another --out, or delete the folder."
        )


def start_record(recipe: Recipe, run: Run, folder: RunFolder, fingerprint: str) -> dict[str, Any]:
    """The content of run.json when training begins; raises WeatheredError if other code began this run."""
    parts = resolve(recipe.use)
    record = {
        "hash": recipe.hash,
        "recipe": recipe.to_tree(),
        "resolved": recipe.canonical(),
        "data_fingerprint": fingerprint,
        "data_notes": list(run.train.notes),
        "train_size": len(run.train),
        "classes": list(run.train.class_names),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seed": recipe.settings.seed,
        "device": str(run.device),
        "devices": run.fabric.world_size,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("weathered", "torch", "torchvision", "timm", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "source": {use.slug: _source_hash(import_part(use.entry)) for use in [*parts, *_wrapped(parts)]},
    }
    _check_same_code(folder, record)
    return record


def _check_same_code(folder: RunFolder, record: dict[str, Any]) -> None:
    """Refuse to go on with a run that other code began: it would be neither the one nor the other."""
    if newest_checkpoint(folder.checkpoints) is None:
        return
    before = folder.read_json("run.json")
    for kind in ("versions", "source"):
        changed = [name for name, value in record[kind].items() if before[kind].get(name) != value]
        if changed:
            raise WeatheredError(
                f"{folder.path} was begun with other code ({', '.join(changed)} changed since) and cannot be "
                "resumed faithfully. Delete it to start over."
            )


def _wrapped(parts: Sequence[Use]) -> list[Use]:
    """The losses inside other losses, at any depth."""
    inner = [use for part in parts if "base" in part.options for use in resolve([part.options["base"]])]
    return [*inner, *_wrapped(inner)] if inner else []


def _source_hash(part: Any) -> str:
    """Twelve digits for the files of a class and of what it inherits from, those of Python itself left out."""
    files = {inspect.getsourcefile(kind) for kind in inspect.getmro(part) if kind.__module__ != "builtins"}
    digest = hashlib.sha256()
    for path in sorted(filter(None, files)):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def same_threads(folder: RunFolder) -> Iterator[None]:
    """Compute with as many threads as the run began with: their number changes the order of sums."""
    before = torch.get_num_threads()
    if (folder.path / "run.json").exists():
        torch.set_num_threads(int(folder.read_json("run.json").get("threads", before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def alone(folder: RunFolder) -> Iterator[None]:
    """Hold the folder's lock; raises WeatheredError if another process trains the same recipe."""
    with (folder.path / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WeatheredError(f"{folder.path} is being trained by another process. Wait for it.") from error
        yield
