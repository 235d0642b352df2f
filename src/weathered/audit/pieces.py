"""Pieces of an audit, kept as they are done, so that an audit that was killed goes on where it stood.

A piece is a few tensors under a name. Pieces of one audit lie in a folder of its own beside the run, named by what the
audit was asked, the weights, the data, the code and the number of threads; any other audit has another folder. They are
removed once the audit has its result.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from weathered.claim_source import package_digest
from weathered.core.atomic import write_atomically
from weathered.loaded_run import LoadedRun

FOLDER = "unfinished"

Piece = dict[str, Tensor]


class Pieces:
    """What is done of an audit. folder: where pieces are kept; None keeps nothing.

    As a context it removes the folder at its end, unless that is an error or Ctrl-C.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            # others may lie beside it
            if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    @classmethod
    def of(cls, run: LoadedRun, audit: str, **asked: Any) -> "Pieces":
        """Those of an audit of a finished run. asked: all that its result depends on besides the run."""
        weights = hashlib.sha256(run.folder.weights.read_bytes()).hexdigest()
        data = run.folder.read_json("run.json")["data_fingerprint"]
        state = (audit, asked, weights, data, package_digest(), torch.get_num_threads(), torch.__version__)
        digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
        return cls(run.folder.path / FOLDER / f"{audit}-{digest}")

    def get(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Piece:
        """The tensors of a piece: those that are kept, or else what `make` returns, which is kept from now on.

        name: of letters, digits, dots and dashes. A damaged piece is made again.
        """
        if self.folder is None:
            return dict(make())
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            piece = {key: value.contiguous() for key, value in make().items()}
            write_atomically(path, lambda part: save_file(piece, part))
            return piece

    def __contains__(self, name: str) -> bool:
        return self.folder is not None and (self.folder / f"{name}.safetensors").exists()


def duration(seconds: float) -> str:
    """About how long, in words: 'under a minute', '7 minutes', '2.5 hours'."""
    if seconds < 55:
        return "under a minute"
    if seconds < 5400:
        minutes = round(seconds / 60)
        return "a minute" if minutes == 1 else f"{minutes} minutes"
    return f"{seconds / 3600:.1f} hours"


def seconds_of(work: Callable[[], object]) -> float:
    """How long a piece of work takes the second time, when memory and kernels are warm."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
