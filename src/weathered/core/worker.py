"""What every worker process of a pool does first."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however it ended; nothing in a process of its own.

    A killed parent cannot stop its pool: its workers would go on beside the next attempt.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
