"""Files that are either the old one or the whole new one, whatever interrupts the writing."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; nothing is left behind on failure.

    The folder is created where it is missing. Raises what `write` raises, and OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a unique name per write: another process may be writing the same file
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) == part:
            # the name that the caller knows
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
