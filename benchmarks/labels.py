"""Finding wrong labels at 50,000 x 100 and x 1,000 against cleanlab, in time and in peak memory; calibration error.

Each measurement of memory is a process of its own that opens the probabilities from a file, as a user who has them on
disk does: both are told to read them as they would. The rankings are compared first.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from cleanlab.count import compute_confident_joint
from torchmetrics.functional.classification import multiclass_calibration_error

from label_finders import __file__ as FINDERS
from label_finders import ours, theirs
from timing import Row, side_by_side
from weathered.audit.calibration import expected_calibration_error, top_label
from weathered.audit.labels.confident import confident_learning

ROWS = 50_000
CLASSES = (100, 1000)


def made(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, C) float32 of a model that is mostly right, and labels of which a fifth is wrong."""
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, ROWS)
    logits = rng.standard_normal((ROWS, classes), dtype=np.float32)
    logits[np.arange(ROWS), truth] += 5
    labels = np.where(rng.random(ROWS) < 0.2, rng.integers(0, classes, ROWS), truth)
    return torch.from_numpy(logits).softmax(1).numpy(), labels


def rows() -> list[Row]:
    return [*_issues(), _calibration()]


def _issues() -> list[Row]:
    found = []
    for classes in CLASSES:
        probabilities, labels = made(classes)
        mine, peer = ours(probabilities, labels), theirs(probabilities, labels)
        same = len(set(mine.tolist()) ^ set(peer.tolist()))
        # equal counts up to how ties of remainders are broken, and one order for what both name; where most counts are
        # 0 or 1, as for a thousand pairs of classes, remainders are tied everywhere
        ties = _different_counts(probabilities, labels)
        assert same <= ties, f"{same} labels are named by one of the two only, but {ties} counts differ"
        both = set(mine.tolist()) & set(peer.tolist())
        assert [row for row in mine.tolist() if row in both] == [row for row in peer.tolist() if row in both]
        what = f"finding wrong labels, {ROWS}x{classes} ({same} of {len(peer)} differ)"
        found.append(
            side_by_side(
                what, "cleanlab", lambda p=probabilities, y=labels: ours(p, y),
                lambda p=probabilities, y=labels: theirs(p, y), 1.0, 3, 1, 0,
            )
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "p.npy", probabilities)
            np.save(Path(folder) / "y.npy", labels)
            del probabilities
            mine, peer = (_peak(name, folder) for name in ("ours", "theirs"))
        for which in ("peak memory", "peak memory above imports"):
            mib = mine[which], peer[which]
            found.append(
                Row(f"{which}, {ROWS}x{classes}, MiB in place of ms", "cleanlab", *mib, mib[1] / mib[0], 1.0, 1)
            )
    return found


def _different_counts(probabilities: np.ndarray, labels: np.ndarray) -> int:
    """Pairs of classes whose estimated counts differ, by 1 each; rows have the same sums."""
    peer = compute_confident_joint(labels, probabilities, calibrate=True)
    mine = confident_learning(probabilities, labels, argmax_over="all").calibrated
    assert np.array_equal(peer.sum(axis=1), mine.sum(axis=1))
    difference = np.abs(peer - mine)
    assert difference.max() <= 1
    return int(difference.sum())


def _peak(name: str, folder: str) -> dict[str, float]:
    """Peak resident memory in MiB of a process of its own, with and without what its imports take."""
    done = subprocess.run([sys.executable, FINDERS, name, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _calibration() -> Row:
    probabilities, labels = made(100)
    p, y = torch.from_numpy(probabilities), torch.from_numpy(labels)

    def mine() -> float:
        return expected_calibration_error(*top_label(p, y))

    def peer() -> float:
        return float(multiclass_calibration_error(p, y, num_classes=100, n_bins=15))

    assert abs(mine() - peer()) < 1e-4
    return side_by_side("expected calibration error, 50000x100", "torchmetrics", mine, peer, 2.5, 30)
