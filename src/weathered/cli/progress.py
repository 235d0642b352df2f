"""Progress bars of long commands: steps, time left, samples per second; silent when nobody watches."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from weathered.core.run import Run
from weathered.sweep import Status


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar that appears with its first task, so that an error before it is not preceded by an empty line."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


def _task(progress: Progress, name: str, total: float) -> TaskID:
    progress.start()
    return progress.add_task(name, total=total, note="")


def _passes(progress: Progress) -> tuple[Callable[[], None], Callable[[str, int, int], None]]:
    """(clear, show(what, done, of)): one line at a time for what is done at present."""
    now: dict[str, TaskID] = {}

    def clear() -> None:
        for task in now.values():
            progress.remove_task(task)
        now.clear()

    def show(what: str, done: int, of: int) -> None:
        if what not in now:
            clear()
            progress.start()
            now[what] = progress.add_task(f"  {what}", total=of, note="")
        progress.update(now[what], completed=done, total=of)

    return clear, show


@contextmanager
def training_progress() -> Iterator[tuple[Callable[[Run], None], Callable[[str, int, int], None]]]:
    """(an observer that shows the steps of one run, a watcher of what a method does after training)."""
    with _bar() as progress:
        task: TaskID | None = None
        last_time, last_step = time.monotonic(), None

        def observe(run: Run) -> None:
            nonlocal last_time, last_step, task
            now = time.monotonic()
            if task is None:
                task = _task(progress, "training", run.total_steps)
            if last_step is None:
                last_step = run.step
            elif now - last_time > 0.5:
                speed = (run.step - last_step) * run.batch_size / (now - last_time)
                progress.update(task, note=f"epoch {run.epoch + 1}  {speed:,.0f} samples/s")
                last_time, last_step = now, run.step
            progress.update(task, completed=run.step)

        yield observe, _passes(progress)[1]


@contextmanager
def sweep_progress() -> Iterator[Callable[[Status], None]]:
    """A watcher that shows how many runs of a sweep are done, and each run under way."""
    with _bar() as progress:
        whole: TaskID | None = None
        tasks: dict[str, TaskID] = {}
        ended, shown = 0, progress.console.is_terminal

        def watch(status: Status) -> None:
            nonlocal whole, ended
            ended += status.ended
            if status.ended and not shown:
                # a log file takes no bars
                progress.console.print(f"{ended} of {status.runs} runs done", highlight=False)
            if whole is None:
                whole = _task(progress, "runs", status.runs)
            if status.ended:
                if status.hash in tasks:
                    progress.remove_task(tasks.pop(status.hash))
                progress.advance(whole)
                return
            if status.hash not in tasks:
                tasks[status.hash] = progress.add_task(f"  {status.hash}", total=status.total, note="")
            progress.update(tasks[status.hash], completed=status.step)

        yield watch


@contextmanager
def audit_progress(total: int) -> Iterator[tuple[Callable[[], None], Callable[[str, int, int], None]]]:
    """A bar over `total` audits with what the present one is doing below it: (advance, show(what, done, of))."""
    with _bar() as progress:
        whole = _task(progress, "audits", total)
        clear, show = _passes(progress)

        def advance() -> None:
            clear()
            progress.advance(whole)

        yield advance, show


@contextmanager
def counted_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told (done, of) and appears with the first call."""
    with _bar() as progress:
        task: TaskID | None = None

        def watch(done: int, of: int) -> None:
            nonlocal task
            if task is None:
                task = _task(progress, name, of)
            progress.update(task, completed=done)

        yield watch


@contextmanager
def plain_progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar over `total` items; call what it yields once per finished item."""
    with _bar() as progress:
        task = _task(progress, name, total)
        yield lambda: progress.advance(task)
