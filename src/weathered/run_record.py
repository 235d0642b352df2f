"""What a run folder says of where its run came from, and the refusal to go on with it from anywhere else."""

import fcntl
import hashlib
import inspect
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from weathered.assemble import Use, import_part, resolve
from weathered.claim_source import package_digest
from weathered.core.checkpoint import newest_checkpoint
from weathered.core.errors import DataError, WeatheredError
from weathered.core.run import Run
from weathered.recipe import Recipe
from weathered.store import RunFolder


def check_same_data(folder: RunFolder, fingerprint: str) -> None:
    """Refuse a folder whose run was made from other files than those that are there now."""
    if (folder.path / "run.json").exists() and folder.read_json("run.json")["data_fingerprint"] != fingerprint:
        raise DataError(
            f"the data have changed since {folder.path} was trained on them. Bring them back as they were, or "
            "delete the folder or train into another --out."
        )


def start_record(recipe: Recipe, run: Run, folder: RunFolder, fingerprint: str) -> dict[str, Any]:
    """The content of run.json when training begins; raises WeatheredError if other code or devices began this run."""
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
        "python": platform.python_version(),
        "platform": platform.platform(),
        **code_of(recipe),
    }
    _check_same_origin(folder, record)
    return record


def code_of(recipe: Recipe) -> dict[str, dict[str, str]]:
    """What a run of this recipe is computed with: versions of packages, and source digests of this one and of parts.

    The digest of a part covers the files of its class and of what that inherits from, in whichever package.
    """
    parts = resolve(recipe.use)
    return {
        "versions": {name: version(name) for name in ("weathered", "torch", "torchvision", "timm", "numpy")},
        "source": {
            "weathered": package_digest(),
            **{use.slug: _source_hash(import_part(use.entry)) for use in [*parts, *_wrapped(parts)]},
        },
    }


def changed_code(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names among `now`, as of `code_of`, that a run's record has otherwise or not at all."""
    found = [
        name for kind in ("versions", "source") for name, value in now[kind].items() if before[kind].get(name) != value
    ]
    return list(dict.fromkeys(found))


def _check_same_origin(folder: RunFolder, record: dict[str, Any]) -> None:
    """Refuse to go on with a run that other code or devices began: it would be neither the one nor the other."""
    if newest_checkpoint(folder.checkpoints) is None:
        return
    before = folder.read_json("run.json")
    changed = changed_code(before, record)
    if changed:
        raise WeatheredError(
            f"{folder.path} was begun with other code ({', '.join(changed)} changed since) and cannot be "
            "resumed faithfully. Delete it to start over."
        )
    if _devices(before) != _devices(record):
        raise WeatheredError(
            f"{folder.path} was begun on {_devices(before)} and cannot be resumed faithfully on {_devices(record)}. "
            "Use the same --devices and --accelerator, or delete it to start over."
        )


def _devices(record: dict[str, Any]) -> str:
    """As in `2 x cuda`; which of several cards it was does not matter."""
    return f"{record['devices']} x {record['device'].partition(':')[0]}"


def unlike(records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Sentences on what was not the same when the runs behind these records were made, other than their recipes."""
    kinds: dict[str, list[str]] = {}
    names = dict.fromkeys(name for record in records for name in record["versions"])
    for name in names:
        kinds[name] = [record["versions"].get(name, "unknown") for record in records]
    slugs = dict.fromkeys(slug for record in records for slug in record["source"])
    # arms have parts of their own, so only runs that have a part are compared on it
    sources = {slug: {record["source"].get(slug) for record in records} - {None} for slug in slugs}
    sources["weathered"] = {record["source"].get("weathered") for record in records}
    kinds["devices"] = [_devices(record) for record in records]
    kinds["threads"] = [str(record["threads"]) for record in records]
    differing = [f"{name} ({_counted(values)})" for name, values in kinds.items() if len(set(values)) > 1]
    changed = [slug for slug, digests in sources.items() if len(digests) > 1]
    if changed:
        differing.append(f"the source code of {', '.join(changed)}")
    if not differing:
        return ()
    return (
        f"The runs were not made alike; they differ in {'; '.join(differing)}. Part of a difference between arms may "
        "come from there: delete the older runs and train them again to compare methods alone.",
    )


def _counted(values: Sequence[str]) -> str:
    """As in `2.14.1 in 3 runs, 2.15.0 in 1 run`."""
    return ", ".join(f"{value} in {n} run{'s' * (n > 1)}" for value, n in sorted(Counter(values).items()))


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
