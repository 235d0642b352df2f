"""The loop. Read this first: all methods of the library run in it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from weathered.core.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from weathered.core.distributed import any_of_each, by_rank, together
from weathered.core.roles import Part
from weathered.core.run import Run
from weathered.data.loader import iterate

Observer = Callable[[Run], None]
"""Called after every step; progress bars and tests hang here. It must not change the run."""


def fit(
    run: Run,
    *,
    folder: Path | None = None,
    recipe_hash: str = "",
    max_steps: int | None = None,
    observer: Observer | None = None,
    after_epoch: Callable[[Run, float], None] | None = None,
) -> Run:
    """Train a run to its end, or by `max_steps` steps, going on from where it stands.

    folder: where checkpoints are written and found, the same on all processes; none without. after_epoch: called with
    the run and the mean loss of the epoch. Raises NonFinite if the loss is not finite, CheckpointError if a checkpoint
    is damaged or of another recipe or number of devices. Ctrl-C ends the current step, writes a checkpoint and raises
    KeyboardInterrupt.
    """
    # nobody goes on before all have read: the first process removes old checkpoints
    with together(run.fabric):
        if folder is not None and (path := newest_checkpoint(folder)) is not None:
            run.load_state_dict(load_checkpoint(path, recipe_hash))
    stop = run.total_steps if max_steps is None else min(run.step + max_steps, run.total_steps)
    saved = time.monotonic()

    def save(folder: Path) -> None:
        nonlocal saved
        state = run.state_dict()
        with together(run.fabric):
            if run.fabric.is_global_zero:
                save_checkpoint(folder, state, recipe_hash)
        saved = time.monotonic()

    cards = [run.device] if run.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cards),
        _deferred_interrupt() as interrupted,
        closing(_batches(run, stop)) as batches,
    ):
        while run.step < stop:
            with together(run.fabric):
                _open_epoch(run)
                rows, x = next(batches)
            train_step(run, rows, x)
            loss = _epoch_loss(run)
            due = time.monotonic() - saved >= run.settings.checkpoint_seconds or run.step == stop
            # clocks differ, and all must save together
            stopping, saving = any_of_each(run.fabric, [interrupted(), due])
            with together(run.fabric):
                if loss is not None:
                    _close_epoch(run, loss, after_epoch)
                if observer is not None:
                    observer(run)
            if folder is not None and run.step < run.total_steps and (saving or stopping):
                save(folder)
            if stopping:
                raise KeyboardInterrupt
    return run


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of the step, so that no half-made update is saved; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def remember(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def train_step(run: Run, rows: Tensor, x: Tensor) -> None:
    """One step on the inputs `x` (B, ...) at the training rows `rows` (B,)."""
    _set_learning_rate(run)
    run.begin_step()
    run.model.train()
    batch = run.prepare(x, run.train.labels[rows], rows)
    run.procedure.update(run, batch)
    run.procedure.after_step(run)
    if run.step == 0:
        run.check_used()
    run.step += 1


def parts_of(run: Run) -> list[Part]:
    """The procedure, then the parts that were given, plain functions left out."""
    return [part for part in (run.procedure, *(part for _, part in run.parts)) if isinstance(part, Part)]


def _set_learning_rate(run: Run) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = run.settings.learning_rate(run.progress, 1 / run.total_steps)


def _batches(run: Run, stop: int) -> Generator[tuple[Tensor, Tensor]]:
    """Rows and inputs of each step from the current one to `stop`, this process's share of them."""
    share = run.batch_size // run.fabric.world_size
    first = run.fabric.global_rank * share
    while run.step < stop:
        position = run.step % run.steps_per_epoch
        order = run.order(run.epoch)
        last = min(run.steps_per_epoch, position + stop - run.step)
        starts = [number * run.batch_size + first for number in range(position, last)]
        rows = [order[start : start + share] for start in starts]
        yield from zip(rows, iterate(run.train, rows, run.settings.workers), strict=True)


def _epoch_loss(run: Run) -> float | None:
    """The mean loss of the epoch over all processes when it has ended, else None."""
    if run.step % run.steps_per_epoch:
        return None
    total, steps = by_rank(run.fabric, run.epoch_losses).sum(0).tolist()
    run.epoch_losses = torch.zeros(2, dtype=torch.float64)
    return total / max(steps, 1)


def _open_epoch(run: Run) -> None:
    """Tell all parts that an epoch begins, where one does; the probe has no other call."""
    if run.step % run.steps_per_epoch:
        return
    _set_learning_rate(run)
    if run.probe is not None:
        run.used[id(run.probe)] += 1
    for part in parts_of(run):
        part.before_epoch(run)


def _close_epoch(run: Run, loss: float, after_epoch: Callable[[Run, float], None] | None) -> None:
    for part in parts_of(run):
        part.after_epoch(run)
    if after_epoch is not None:
        after_epoch(run, loss)
