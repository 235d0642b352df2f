"""Finding wrong labels, ours and cleanlab's; as a program, the peak memory of one with its own imports alone."""

import json
import sys
from pathlib import Path

import numpy as np

METHOD = "prune_by_noise_rate"


def ours(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from weathered.audit.labels import find_issues

    return find_issues(probabilities, labels, method=METHOD, score="self_confidence", argmax_over="all").rows


def theirs(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from cleanlab.filter import find_label_issues

    return find_label_issues(
        labels, probabilities, filter_by=METHOD, return_indices_ranked_by="self_confidence", n_jobs=1
    )


def peak() -> float:
    """Peak resident memory of this program so far, MiB; getrusage would count the process that started it as well."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    find = {"ours": ours, "theirs": theirs}[sys.argv[1]]
    place = Path(sys.argv[2])
    # a few rows import all that is needed
    find(np.tile(np.eye(2), (4, 1)) * 0.8 + 0.1, np.tile([0, 1], 4))
    imported = peak()
    find(np.load(place / "p.npy", mmap_mode="r"), np.load(place / "y.npy"))
    print(json.dumps({"peak memory": peak(), "peak memory above imports": peak() - imported}))
