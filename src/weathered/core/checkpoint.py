"""Checkpoints without pickle: tensors in safetensors, everything else in JSON, written atomically.

A checkpoint is a folder of two files. It appears under its final name only when it is whole, and the JSON carries
the digest of the tensors, so that a file cut in half is noticed.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from weathered.core.atomic import write_atomically
from weathered.core.errors import CheckpointError

TENSORS, STATE = "tensors.safetensors", "state.json"


def flatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace each tensor in a tree of dicts and lists by a reference, and collect the tensors."""
    if isinstance(tree, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"items": [[flatten(k, tensors), flatten(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return [flatten(value, tensors) for value in tree]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint holds tensors, numbers, text, dicts and lists, not {type(tree).__name__}")


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`; tuples come back as lists."""
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {unflatten(k, tensors): unflatten(v, tensors) for k, v in tree["items"]}
    return [unflatten(value, tensors) for value in tree] if isinstance(tree, list) else tree


def save_checkpoint(folder: Path, state: dict[str, Any], recipe_hash: str) -> None:
    """Write `state` as the newest checkpoint in `folder`, then remove the older ones.

    state: a tree of tensors, numbers, text, dicts and lists. recipe_hash: refused on load if it differs.
    """
    tensors: dict[str, Tensor] = {}
    tree = flatten(state, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    # a unique name per write: another process may be saving into the same folder
    part = folder / f".partial-{uuid.uuid4().hex}"
    part.mkdir()
    try:
        write_tensors(part / TENSORS, tensors)
        digest = file_digest(part / TENSORS)
        text = json.dumps({"recipe": recipe_hash, "digest": digest, "state": tree})
        (part / STATE).write_text(text)
        final = folder / f"step-{int(state['step']):09d}"
        if final.exists():
            # aside first: at no moment is there no whole checkpoint, and .partial- folders are removed below
            os.replace(final, folder / f".partial-{uuid.uuid4().hex}")
        os.replace(part, final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in folder.iterdir():
        if old != final and (old.name.startswith("step-") or old.name.startswith(".partial-")):
            shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint folder, or None."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    return found[-1] if found else None


def load_checkpoint(path: Path, recipe_hash: str) -> dict[str, Any]:
    """Read a checkpoint folder back.

    Raises CheckpointError if a file is damaged or missing, or if it was written by another recipe.
    """
    way_out = f"Delete {path} to start over."
    try:
        record = json.loads((path / STATE).read_text())
        recipe, digest, tree = record["recipe"], record["digest"], record["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {STATE} cannot be read. {way_out}") from error
    if recipe != recipe_hash:
        raise CheckpointError(
            f"the checkpoint {path} belongs to another recipe ({recipe}, this one is {recipe_hash}). "
            f"Use another output folder, or delete it to start over."
        )
    try:
        if file_digest(path / TENSORS) != digest:
            raise CheckpointError(f"the checkpoint {path} is damaged: {TENSORS} was cut or changed. {way_out}")
        return unflatten(tree, load_file(path / TENSORS))
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {TENSORS} cannot be read. {way_out}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors as safetensors; a failure to write is an OSError as for any other file."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        full = "No space left" in str(error)
        raise OSError(
            errno.ENOSPC if full else errno.EIO, os.strerror(errno.ENOSPC) if full else str(error), str(path)
        ) from error


def save_weights(path: Path, module: torch.nn.Module) -> None:
    """A module's weights and buffers as safetensors, written atomically."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    write_atomically(path, lambda part: write_tensors(part, state))
