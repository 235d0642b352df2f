"""Serve a review on this machine until it is stopped."""

import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from html import escape
from pathlib import Path
from secrets import token_urlsafe

from weathered.core.errors import SpecError, WeatheredError
from weathered.review.review import Review

HOST = "127.0.0.1"
SHUTDOWN_SECONDS = 2


def serve(review: Review, port: int | None, browser: bool, say: Callable[[str], None]) -> None:
    """Answer at 127.0.0.1 until Ctrl-C. say: told the links that let reviewers in, one after another.

    port: by default the one this review had before if it is free, else any; reviewers' pages then find the server
    again. browser: open the first link in the machine's browser. Raises SpecError if the port is taken,
    WeatheredError if fastapi or uvicorn is not installed.
    """
    try:
        import uvicorn

        from weathered.review.pages import build_app
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise WeatheredError(
            "the review page needs fastapi and uvicorn; install them by pip install 'weathered[review]'."
        ) from error
    listener = _listen(port, review.store.fact("port"))
    number = listener.getsockname()[1]
    review.store.set_fact("port", str(number))

    def link(token: str) -> str:
        return f"http://{HOST}:{number}/?token={token}"

    def joined(name: str, token: str) -> None:
        say(f"{name} has joined. A link for another reviewer: {link(token)}")

    first = token_urlsafe(32)
    app = build_app(review, first, joined)
    # the log of requests would show the links
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        lifespan="off",
    )
    say(f"{len(review.suspects)} suspected labels. A link that lets one reviewer in: {link(first)}")
    page = _open_browser(link(first)) if browser and _has_screen() else None
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
        review.store.close()
        if page is not None:
            page.unlink(missing_ok=True)


def _listen(port: int | None, before: str | None) -> socket.socket:
    """A socket at the wanted port, at the one of before, or at a free one."""
    if port is not None:
        try:
            return bound_socket(port)
        except OSError as error:
            raise SpecError(f"port {port} cannot be used: {error.strerror}; give another --port, or none.") from error
    if before is not None:
        with suppress(OSError):
            return bound_socket(int(before))
    return bound_socket(0)


def bound_socket(port: int) -> socket.socket:
    """A socket that listens at a port of 127.0.0.1, 0 for any free one. Raises OSError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # a server that was killed leaves its port in waiting
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(256)
    except OSError:
        listener.close()
        raise
    return listener


def _has_screen() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open_browser(link: str) -> Path | None:
    """Open a link through a file that only this user can read: other users see the arguments of processes."""
    with suppress(OSError, webbrowser.Error):
        handle, name = tempfile.mkstemp(suffix=".html", prefix="weathered-review-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(link)}">')
        webbrowser.open(Path(name).as_uri())
        return Path(name)
    return None
