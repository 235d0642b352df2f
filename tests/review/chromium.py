"""A headless Chromium that is told what to do through a pipe: pages, real key strokes, what the console says."""

import base64
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from chromium_flags import CHROMIUM, QUIET

FLAGS = (*QUIET, "--remote-debugging-pipe")
# the browser reads commands from descriptor 3 and answers on descriptor 4
LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
KEYS = {
    "Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "Home": (36, ""), "End": (35, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""),
}  # fmt: skip


class Chromium:
    """The browser. Use it in a `with` block."""

    def __init__(self, profile: Path):
        assert CHROMIUM is not None
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                LAUNCHER,
                str(commands),
                str(answers),
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._number = b"", 0
        self.events: deque[dict[str, Any]] = deque()

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(timeout=20)
        except (OSError, TimeoutError, EOFError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._read)
            os.close(self._write)

    def page(self) -> "Page":
        """An empty page with cookies of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session)

    def call(self, method: str, session: str | None = None, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what comes in between is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": fields}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """One page. `console` collects what was written there, errors and refusals by the content policy included."""

    def __init__(self, browser: Chromium, session: str):
        self.browser, self.session = browser, session
        self.console: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **fields: Any) -> dict[str, Any]:
        answer = self.browser.call(method, self.session, **fields)
        for event in [e for e in self.browser.events if e.get("sessionId") == self.session]:
            self.browser.events.remove(event)
            match event["method"]:
                case "Log.entryAdded":
                    self.console.append(event["params"]["entry"]["text"])
                case "Runtime.exceptionThrown":
                    self.console.append(json.dumps(event["params"]["exceptionDetails"]))
                case "Runtime.consoleAPICalled":
                    self.console.append(json.dumps(event["params"]["args"]))
                case "Page.javascriptDialogOpening":
                    self._call("Page.handleJavaScriptDialog", accept=True)
        return answer

    def goto(self, address: str) -> None:
        """Open an address and wait until the page is there."""
        self._call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        """What an expression is worth in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Wait until an expression is true in the page, and return it."""
        deadline = time.monotonic() + seconds
        found = None
        while time.monotonic() < deadline:
            try:
                if found := self.value(script):
                    return found
            except RuntimeError:
                # between two pages there is nothing to evaluate in
                pass
            time.sleep(0.02)
        raise TimeoutError(f"{script} did not become true; status: {self.value('document.body.innerText')[:600]}")

    def press(self, key: str) -> None:
        """Press and release a key, as a keyboard does."""
        code, text = KEYS.get(key, (ord(key.upper()[0]), key))
        fields: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **fields)
        self._call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def type(self, text: str) -> None:
        """Type a text, letter by letter."""
        for letter in text:
            self.press(letter)

    def look(self, dark: bool = False, width: int = 1280, height: int = 900, script: bool = True) -> None:
        """Colour scheme, size of the window in pixels, and whether scripts run."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setScriptExecutionDisabled", value=not script)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
