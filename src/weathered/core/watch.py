"""How long work tells what it is doing."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called now and then with the name of what is done at present, how many pieces of it are done, and how many in all."""
