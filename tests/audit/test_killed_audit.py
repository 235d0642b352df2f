"""An audit that is killed again and again comes to the same bytes as one that was left alone."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe
from weathered.training import train

ASKED = (
    "--audits", "robustness,corruption", "--attacks", "pgd:steps=20,apgd-t:steps=20,square:queries=300",
    "--epsilon", "0.1",
)  # fmt: skip


def audit(run: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "weathered", "audit", str(run), *ASKED]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
    recipe = Recipe(DataOptions(limit=500), "cnn_small:width=8", settings=Settings(epochs=3, batch_size=50))
    run = train(recipe, tmp_path / "runs").path
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(run, whole)
    shutil.copytree(run, killed)
    begun = time.monotonic()
    assert audit(whole).wait() == 0
    seconds, moments = time.monotonic() - begun, random.Random(0)
    kills, met = 0, 0
    for _ in range(10):
        process = audit(killed)
        try:
            process.wait(seconds * moments.uniform(0.3, 0.8))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            met += (killed / "unfinished").exists()
        else:
            break
    assert kills
    assert met
    assert audit(killed).wait() == 0
    assert (killed / "audit.json").read_bytes() == (whole / "audit.json").read_bytes()
    assert not (killed / "unfinished").exists()
