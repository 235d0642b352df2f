"""The label audit of 1,000,000 x 1,000 probabilities from a file: within 4 GiB, and the answer of the path in memory.

Each path is a process of its own. The one that reads the file is not given more: the operating system refuses it
private memory beyond 4 GiB (RLIMIT_DATA). Pages of the mapped file are not counted, which the system takes back when
it needs them. Needs about 4 GiB of disk and 9 GiB of memory.
"""

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from timing import Row
from weathered.audit.labels import audit_labels

ROWS, CLASSES = 1_000_000, 1000
BLOCK = 10_000
LIMIT_MIB = 4096


def rows() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(folder)
        from_file, in_memory = (_audited(path, folder) for path in ("file", "memory"))
    assert from_file["answer"] == in_memory["answer"], "the two paths disagree"
    seconds = f"{from_file['seconds']:.0f} s, {in_memory['seconds']:.0f} s in memory"
    what = f"label audit of {ROWS}x{CLASSES} from a file ({seconds}), peak private MiB in place of ms"
    peak = from_file["peak"]
    return [Row(what, f"{LIMIT_MIB} MiB", peak, float(LIMIT_MIB), LIMIT_MIB / peak, 1.0, 1)]


def _make(folder: Path) -> None:
    """Probabilities float32 of a model that is mostly right, and labels of which a fifth is wrong."""
    rng = np.random.default_rng(0)
    matrix = np.lib.format.open_memmap(folder / "p.npy", mode="w+", dtype=np.float32, shape=(ROWS, CLASSES))
    truth = rng.integers(0, CLASSES, ROWS)
    for start in range(0, ROWS, BLOCK):
        block = np.exp(rng.standard_normal((BLOCK, CLASSES), dtype=np.float32))
        block[np.arange(BLOCK), truth[start : start + BLOCK]] *= np.exp(6)
        matrix[start : start + BLOCK] = block / block.sum(axis=1, keepdims=True)
    matrix.flush()
    np.save(folder / "y.npy", np.where(rng.random(ROWS) < 0.2, rng.integers(0, CLASSES, ROWS), truth))


def _audited(path: str, folder: Path) -> dict:
    done = subprocess.run([sys.executable, __file__, path, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _private_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def _show(what: str, done: int, of: int) -> None:
    if 10 * done // of > 10 * (done - 1) // of:
        print(f"{what}: {done} of {of}", file=sys.stderr)


def _one(path: str, folder: Path) -> None:
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, _private_mib())

    source = folder / "p.npy"
    if path == "file":
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_MIB << 20, LIMIT_MIB << 20))
    labels = np.load(folder / "y.npy")
    threading.Thread(target=watch, daemon=True).start()
    begun = time.monotonic()
    matrix = source if path == "file" else np.load(source)
    result = audit_labels(matrix, labels, [str(c) for c in range(CLASSES)], progress=_show)
    seconds = time.monotonic() - begun
    done.set()
    digest = hashlib.sha256(json.dumps(result.to_json()).encode())
    for name in sorted(result.per_sample):
        digest.update(np.ascontiguousarray(result.per_sample[name]).tobytes())
    print(json.dumps({"answer": digest.hexdigest(), "peak": peak, "seconds": seconds}))


if __name__ == "__main__":
    _one(sys.argv[1], Path(sys.argv[2]))
