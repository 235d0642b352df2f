"""Out-of-sample probabilities of every sample by K-fold cross-validation, each fold saved as soon as it is done.

A label audit must not ask a model about samples it was trained on: it would repeat their labels, the wrong ones too.
So each of K models predicts only the fold it never saw. Folds are stratified: class counts of any two folds differ by
at most 1, and so do their sizes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weathered.audit.labels.blocks import as_array, check_labels, check_probabilities, open_matrix, row_blocks
from weathered.core.atomic import write_atomically, write_text
from weathered.core.errors import DataError
from weathered.core.rng import generator
from weathered.core.watch import Progress
from weathered.data.splits import refuse_single_samples, stratified_folds

FitPredict = Callable[[np.ndarray, np.ndarray], np.ndarray | Tensor]
"""(train rows, held rows), sorted int64 arrays -> probabilities (held rows, C) of a model fitted to the train rows."""


def out_of_sample_probabilities(
    fit_predict: FitPredict,
    labels: np.ndarray | Tensor,
    class_names: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    folder: Path | None = None,
    key: str = "",
    progress: Progress | None = None,
) -> np.ndarray:
    """Probabilities (N, C) float32 in which each row comes from the one model that was not fitted to it.

    fit_predict: see `FitPredict`; called once per fold. labels (N,): in [0, C), at least 2 of each class, so that each
    fold's model sees all classes. folder: where finished folds are kept; a later call with the same labels, folds,
    seed and key goes on from them, and the result is a read-only memory map of the file `probabilities.npy` in it.
    key: names what else decides the result, as a recipe's hash does. progress: called after each fold.
    Raises DataError if a class has fewer than 2 samples, if the folder belongs to another plan or holds a damaged
    fold, or if fit_predict returns anything but distributions; ValueError if folds is out of range.
    """
    size, rows = len(class_names), len(labels)
    given = check_labels(labels, rows, size)
    refuse_single_samples(torch.from_numpy(given), class_names)
    fold = stratified_folds(torch.from_numpy(given), folds, generator(seed, "folds")).numpy()
    if folder is not None:
        _claim(folder, given, fold, size, key)
        finished = folder / "probabilities.npy"
        if finished.exists():
            return _load(finished, rows, size)
    parts: list[np.ndarray] = []
    for number in range(folds):
        held, path = (fold == number).nonzero()[0], None if folder is None else folder / f"fold-{number}.npy"
        if path is not None and path.exists():
            part = _load(path, len(held), size)
        else:
            part = _checked(fit_predict((fold != number).nonzero()[0], held), len(held), size, number)
            if path is not None:
                _save(path, part)
                part = _load(path, len(held), size)
        parts.append(part)
        if progress is not None:
            progress("folds", number + 1, folds)
    if folder is None:
        together = np.empty((rows, size), np.float32)
        _assemble(together, parts, fold)
        return together
    write_atomically(folder / "probabilities.npy", lambda part: _write_assembled(part, parts, fold, size))
    return _load(folder / "probabilities.npy", rows, size)


def _assemble(together: np.ndarray, parts: list[np.ndarray], fold: np.ndarray) -> None:
    for number, part in enumerate(parts):
        held = (fold == number).nonzero()[0]
        for start, block in row_blocks(part, "assembling"):
            together[held[start : start + len(block)]] = block


def _write_assembled(path: Path, parts: list[np.ndarray], fold: np.ndarray, size: int) -> None:
    together = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(fold), size))
    _assemble(together, parts, fold)
    together.flush()


def _claim(folder: Path, labels: np.ndarray, fold: np.ndarray, size: int, key: str) -> None:
    """Write what the folder belongs to, or compare with what is written there."""
    digest = hashlib.sha256(labels.tobytes() + fold.tobytes() + key.encode()).hexdigest()
    plan = {"rows": len(labels), "classes": size, "folds": int(fold.max()) + 1, "fingerprint": digest}
    path = folder / "plan.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_text(path, json.dumps(plan, indent=2) + "\n")
        return
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}. Choose another folder.") from None
    if found != plan:
        raise DataError(
            f"{folder} holds folds of other labels, another number of folds, another seed or another recipe. Choose "
            "another folder, or delete this one."
        )


def _checked(returned: np.ndarray | Tensor, rows: int, size: int, number: int) -> np.ndarray:
    matrix = open_matrix(returned, f"What fit_predict returned for fold {number}")
    if tuple(matrix.shape) != (rows, size):
        raise DataError(f"fit_predict must return ({rows}, {size}) for fold {number}, got {tuple(matrix.shape)}.")
    part = np.empty((rows, size), np.float32)
    for start, block in row_blocks(matrix, "checking"):
        check_probabilities(block, start)
        part[start : start + len(block)] = as_array(block)
    return part


def _save(path: Path, part: np.ndarray) -> None:
    def write(to: Path) -> None:
        # through a stream: given a path, numpy appends .npy to the name
        with to.open("wb") as stream:
            np.save(stream, part, allow_pickle=False)

    write_atomically(path, write)


def _load(path: Path, rows: int, size: int) -> np.ndarray:
    matrix = open_matrix(path, "A saved fold")
    if tuple(matrix.shape) != (rows, size) or not isinstance(matrix, np.ndarray):
        raise DataError(f"{path} holds {tuple(matrix.shape)} values, expected ({rows}, {size}). Delete that file.")
    return matrix
