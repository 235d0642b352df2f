"""Which arrays of an npz file belong together: one data set, or a training and a test part by the names of the keys."""

from collections.abc import Sequence
from pathlib import Path

from weathered.core.errors import DataError
from weathered.data.labels import DEFAULT_COLUMNS
from weathered.data.sources.options import user_path

INPUT_NAMES = ("x", "images", "features", "data")
PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
"""Word in a key or after the path -> part."""


def place_and_part(rest: str) -> tuple[str, str | None]:
    """(path, part) of what follows `npz:`, where `PATH:test` names a part; the part is None where none is named."""
    place, colon, word = rest.rpartition(":")
    if colon and place and word in PARTS and not user_path(rest).exists():
        return place, PARTS[word]
    return rest, None


def plain(name: str) -> str:
    """`X` and `Y` as x and y; names that are not those of inputs or labels stay."""
    return name.lower() if name.lower() in (*INPUT_NAMES, *DEFAULT_COLUMNS) else name


def part_and_name(key: str) -> tuple[str, str] | None:
    """(part, name) of a key such as x_train, X_train or train_images; None if it names no part."""
    for word, name in (key.rpartition("_")[::-2], key.partition("_")[::2]):
        if name and word.lower() in PARTS:
            return PARTS[word.lower()], plain(name)
    return None


def parts_of(keys: Sequence[str], path: Path) -> dict[str, dict[str, str]]:
    """part -> name -> key, for a file whose keys name parts; empty for a file that is one data set.

    Raises DataError if inputs of both kinds are there, or two keys stand for one array.
    """
    parts: dict[str, dict[str, str]] = {}
    for key in keys:
        found = part_and_name(key)
        if found:
            part, name = found
            _add(parts.setdefault(part, {}), name, key, path)
    split = [key for names in parts.values() for name, key in names.items() if name in INPUT_NAMES]
    whole = [key for key in keys if plain(key) in INPUT_NAMES]
    if split and whole:
        raise DataError(
            f"{path}: holds both {whole[0]} and {split[0]}, so it is not clear what to read; keep one of them."
        )
    if not split:
        return {}
    for part, names in parts.items():
        inputs = [key for name, key in names.items() if name in INPUT_NAMES]
        if len(inputs) > 1:
            raise DataError(f"{path}: holds both {inputs[0]} and {inputs[1]} as inputs of the {part} part; keep one.")
    return parts


def names_of(keys: Sequence[str], path: Path) -> dict[str, str]:
    """name -> key of a file that is one data set. Raises DataError if two keys stand for one array."""
    names: dict[str, str] = {}
    for key in keys:
        _add(names, key if plain(key) in keys else plain(key), key, path)
    return names


def _add(names: dict[str, str], name: str, key: str, path: Path) -> None:
    if name in names:
        raise DataError(f"{path}: holds both {names[name]} and {key}, which stand for the same array; keep one.")
    names[name] = key


def choose_part(parts: dict[str, dict[str, str]], part: str | None, test: bool, path: Path) -> str:
    """The part to read: the named one, else test for a test set and train otherwise. Raises DataError if absent."""
    chosen = part or ("test" if test else "train")
    inputs = {p: next((key for name, key in names.items() if name in INPUT_NAMES), None) for p, names in parts.items()}
    if inputs.get(chosen) is None:
        there = {p: key for p, key in inputs.items() if key is not None}
        other = next(iter(there))
        raise DataError(
            f"{path}: there are no inputs of the {chosen} part, such as x_{chosen}, only {', '.join(there.values())}; "
            f"npz:{path}:{other} reads the {other} part."
        )
    return chosen
