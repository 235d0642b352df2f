"""Seconds until the command line answers; the peer is the limit that was set, half a second."""

import statistics
import subprocess
import sys
import time

from timing import Row

LIMIT_MS = 500.0


def rows() -> list[Row]:
    found = []
    for arguments in (["--help"], ["list"]):
        seconds = []
        for _ in range(7):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "weathered", *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begun)
        ours = 1000 * statistics.median(seconds)
        found.append(Row(f"weathered {arguments[0]}", "limit of 500 ms", ours, LIMIT_MS, LIMIT_MS / ours, 1.0, 7))
    return found
