"""What every request must show and every answer carries, whatever page it is for."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HOSTS = ("127.0.0.1", "localhost")
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    # without any referrer browsers hide where a form comes from
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Lets a request through only if it was addressed to this machine and, where it changes something, sent from here.

    The Host header must name 127.0.0.1 or localhost, so that no name that someone else points at this machine reaches
    it. A POST must carry an Origin header of the same host, so that no other site can send it. Answers get a content
    policy without inline scripts, and are not stored unless they say so themselves.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            # a repeated header would let two readers see two values
            headers[name.decode("latin-1")] = "" if name.decode("latin-1") in headers else value.decode("latin-1")

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                added = {"cache-control": "no-store", **HEADERS}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in added.items() if n.encode() not in present),
                ]
            await send(message)

        reason = refusal(scope["method"], headers)
        if reason is None:
            await self.app(scope, receive, send_guarded)
            return
        start = {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
        await send_guarded(start)
        await send({"type": "http.response.body", "body": reason.encode()})


def refusal(method: str, headers: MutableMapping[str, str]) -> str | None:
    """Why a request is refused, None if it is not. headers: names in small letters."""
    host = headers.get("host", "")
    name, _, port = host.partition(":")
    if name not in HOSTS or (port and not (port.isascii() and port.isdigit())):
        return "This page answers at 127.0.0.1 and localhost only."
    if method not in ("GET", "HEAD", "POST"):
        return "This page is read and filled in, nothing else."
    if method == "POST" and headers.get("origin") != f"http://{host}":
        return "This form was sent from another site."
    return None
