"""Run folders: named by the hash of the recipe, written atomically, their state read off the files."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from weathered.audit.result import plain
from weathered.core.atomic import write_atomically, write_text
from weathered.core.errors import DataError

State = Literal["absent", "incomplete", "done"]


REQUIRED = {
    "run.json": ("recipe", "resolved", "data_fingerprint", "data_notes", "train_size", "classes", "versions"),
    "comparison.json": ("ranking", "baseline", "seeds", "recipe", "failed"),
}
"""What must be in a file for others to read it."""


class RunFolder:
    """One run on disk.

    run.json: resolved recipe, versions, device, seed, results. metrics.jsonl: one line per evaluation.
    audit.json, per_sample.parquet, weights.safetensors: what the finished run showed. checkpoint/: while it goes
    on. done: written last.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def state(self) -> State:
        if (self.path / "done").exists():
            return "done"
        return "incomplete" if self.path.exists() else "absent"

    def write_json(self, name: str, tree: Any) -> None:
        write_text(self.path / name, json.dumps(plain(tree), indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """A JSON file of the run; raises DataError if it is missing or damaged."""
        path = self.path / name
        try:
            tree = json.loads(path.read_text())
            if not isinstance(tree, dict):
                raise ValueError("it holds no table")
            if missing := [key for key in REQUIRED.get(name, ()) if key not in tree]:
                raise ValueError(f"it has no '{missing[0]}'")
            return tree
        except FileNotFoundError as error:
            raise DataError(f"{self.path} is not a run folder: it has no {name}.") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}.") from error

    def append_metrics(self, line: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(plain(line)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def keep_metrics_until(self, step: int) -> None:
        """Drop lines written after the checkpoint that a resumed run starts from."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(kept))

    def write_per_sample(self, columns: dict[str, Any]) -> None:
        table = pa.table(columns)
        write_atomically(self.path / "per_sample.parquet", lambda part: pq.write_table(table, part))

    def finish(self) -> None:
        """Mark the run as done and remove its checkpoint, which nothing will read again."""
        write_text(self.path / "done", "")
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def find_runs(paths: Iterable[Path]) -> list[RunFolder]:
    """Run folders among `paths` and directly inside them, sorted; raises DataError naming a path without any."""
    found: list[RunFolder] = []
    for path in paths:
        here = [path] if (path / "run.json").exists() else sorted(p.parent for p in path.glob("*/run.json"))
        if not here:
            raise DataError(f"{path} holds no run: there is no run.json in it or in its folders.")
        found += [RunFolder(p) for p in here]
    return found
