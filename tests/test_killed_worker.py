"""A sweep survives the death of a worker: the runs beside it are finished, and the same command goes on."""

import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest

from weathered.core.checkpoint import newest_checkpoint
from weathered.core.settings import Settings
from weathered.recipe import DataOptions, Recipe
from weathered.sweep import KILLED, Status, run_all


def recipe(seed: int, epochs: int) -> Recipe:
    return Recipe(
        data=DataOptions(train="digits", limit=300),
        model="mlp:width=16",
        settings=Settings(epochs=epochs, batch_size=32, seed=seed, checkpoint_seconds=0.1, evaluations=0),
    )


@pytest.fixture
def one_core() -> Iterator[None]:
    """One core for this process and its children, so that a worker has one thread wherever the test runs."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs a system that can bind processes to cores")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_rest_goes_on(tmp_path, one_core):
    long, *short = [recipe(0, 100), recipe(1, 1), recipe(2, 1)]
    out, killed = tmp_path / "runs", []

    def kill(status: Status) -> None:
        begun = newest_checkpoint(out / long.hash / "checkpoint")
        if not killed and begun is not None and status.hash == long.hash:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    outcomes = run_all([long, *short], out, workers=1, watcher=kill)
    assert killed, "the run ended before it could be killed; make it longer"
    assert outcomes[0].error == KILLED
    assert outcomes[0].folder.state == "incomplete"
    assert [outcome.error for outcome in outcomes[1:]] == [None, None]
    assert all(outcome.folder.state == "done" for outcome in outcomes[1:])

    stamps = [(o.folder.path / "done").stat().st_mtime_ns for o in outcomes[1:]]
    newest, steps = newest_checkpoint(out / long.hash / "checkpoint"), []
    assert newest is not None

    def watch(status: Status) -> None:
        if status.hash == long.hash and not status.ended:
            steps.append(status.step)

    again = run_all([long, *short], out, workers=1, watcher=watch)
    assert all(step > int(newest.name.removeprefix("step-")) for step in steps)
    assert [outcome.error for outcome in again] == [None] * 3
    assert [(o.folder.path / "done").stat().st_mtime_ns for o in again[1:]] == stamps
    (straight,) = run_all([long], tmp_path / "straight", workers=1)
    assert again[0].folder.weights.read_bytes() == straight.folder.weights.read_bytes()


@pytest.mark.slow
def test_runs_beside_a_killed_worker_are_finished(tmp_path):
    recipes = [recipe(seed, 60) for seed in range(3)]
    out, killed = tmp_path / "runs", []

    def kill(status: Status) -> None:
        begun = [newest_checkpoint(out / r.hash / "checkpoint") for r in recipes[:2]]
        if not killed and all(begun):
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    outcomes = run_all(recipes, out, workers=2, watcher=kill)
    assert killed, "the runs ended before one could be killed; make them longer"
    assert [outcome.error for outcome in outcomes] == [None] * 3
    straight = run_all(recipes, tmp_path / "straight", workers=2)
    for one, other in zip(outcomes, straight, strict=True):
        assert one.folder.weights.read_bytes() == other.folder.weights.read_bytes()
