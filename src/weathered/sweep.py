"""Many runs: a plan is a list of recipes, a run's state is read off its folder, so any sweep resumes."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from weathered.core.errors import SpecError, WeatheredError
from weathered.core.worker import end_with_parent
from weathered.recipe import Recipe
from weathered.store import RunFolder

if TYPE_CHECKING:
    from weathered.core.run import Run

Launcher = Literal["local", "ray"]


@dataclass(frozen=True)
class Status:
    """How far one run is: its hash, steps done and in all, whether it has ended, and the runs of its sweep."""

    hash: str
    step: int
    total: int
    ended: bool = False
    runs: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended; error is one sentence, or None."""

    folder: RunFolder
    error: str | None


Watcher = Callable[[Status], None]


def run_all(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    launcher: Launcher = "local",
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> list[Outcome]:
    """Train all recipes into `out`, skipping finished ones, and return their outcomes in the given order.

    launcher: `local`, a pool of processes that share the machine's threads, or `ray`, a Ray cluster that sees
    `out` under the same path. workers: processes of the local pool, one per core by default.
    A failed run does not stop the others. Ctrl-C lets each run save its state, then stops.
    """
    if launcher not in get_args(Launcher):
        raise SpecError(f"launcher must be {' or '.join(get_args(Launcher))}, got '{launcher}'.")
    unique = {recipe.hash: recipe for recipe in recipes}
    todo = [recipe for name, recipe in unique.items() if RunFolder(out / name).state != "done"]

    def tell(status: Status) -> None:
        if watcher is not None:
            watcher(replace(status, runs=len(unique)))

    for name in unique.keys() - {recipe.hash for recipe in todo}:
        tell(Status(name, 1, 1, ended=True))
    if launcher == "ray":
        from weathered.sweep_ray import launch_ray

        errors = launch_ray(todo, out)
    else:
        errors = _launch_local(todo, out, workers, tell)
    return [Outcome(RunFolder(out / recipe.hash), errors.get(recipe.hash)) for recipe in recipes]


def train_quietly(tree: dict[str, Any], out: str, observer: Callable[[Run], None] | None = None) -> str | None:
    """Train one recipe given as a tree; the error in one sentence, or None. Runs in workers of any launcher."""
    from weathered.training import train

    try:
        train(Recipe.from_tree(tree), Path(out), observer=observer)
    except WeatheredError as error:
        return str(error)
    except OSError as error:
        return f"{error.strerror or error}: {error.filename or out}. Free some space or choose another --out."
    except Exception as error:
        # a defect in one part must not take the other runs of a sweep with it
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


_messages: Any = None


def _start_worker(messages: Any, threads: int) -> None:
    import torch

    global _messages
    end_with_parent()
    _messages = messages
    torch.set_num_threads(threads)


def _work(tree: dict[str, Any], out: str) -> str | None:
    last = 0.0

    def tell(run: Run) -> None:
        nonlocal last
        if time.monotonic() - last > 0.3:
            last = time.monotonic()
            _messages.put((recipe_hash, run.step, run.total_steps))

    recipe_hash = Recipe.from_tree(tree).hash
    try:
        return train_quietly(tree, out, tell)
    except KeyboardInterrupt:
        return "stopped; the same command goes on from here"


def _launch_local(recipes: Sequence[Recipe], out: Path, workers: int | None, tell: Watcher) -> dict[str, str | None]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(workers or cores, len(recipes)))
    # the same number for all runs, whatever happens: it changes the order of sums
    threads = max(1, cores // workers)
    errors: dict[str, str | None] = {}
    todo = list(recipes)
    while todo:
        _run_pool(todo, out, workers, threads, tell, errors)
        killed = [recipe for recipe in todo if errors[recipe.hash] == KILLED]
        # a killed process takes the pool with it: who ran beside it shows when each goes on alone
        for suspect in killed[:workers] if workers > 1 else ():
            del errors[suspect.hash]
            _run_pool([suspect], out, 1, threads, tell, errors)
        todo = killed[workers:]
    return errors


def _run_pool(
    recipes: Sequence[Recipe],
    out: Path,
    workers: int,
    threads: int,
    tell: Watcher,
    errors: dict[str, str | None],
) -> None:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with ProcessPoolExecutor(workers, context, _start_worker, (messages, threads)) as pool:
        futures: dict[Future[str | None], Recipe] = {
            pool.submit(_work, recipe.to_tree(), str(out)): recipe for recipe in recipes
        }
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.3, return_when=FIRST_COMPLETED)
                for future in done:
                    name = futures[future].hash
                    errors[name] = _error_of(future)
                    if errors[name] != KILLED:
                        tell(Status(name, 1, 1, ended=True))
                _pass_on(messages, tell, errors)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


KILLED = "its process was killed, perhaps for want of memory; the same command goes on from the last checkpoint"


def _error_of(future: Future[str | None]) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return KILLED


def _pass_on(messages: Any, tell: Watcher, ended: dict[str, str | None]) -> None:
    while True:
        try:
            name, step, total = messages.get_nowait()
        except queue.Empty:
            return
        if name not in ended:
            tell(Status(name, step, total))
