#!/usr/bin/env python3
"""Screenshots of the pages with a headless Chromium or Chrome: scripts/screenshots.py LOGIN_URL FOLDER [PATH ...]

LOGIN_URL is what `mainspring up` prints. Every page is taken at 1440 and 390 pixels, and dark. Talks the DevTools protocol
over a pipe; nothing but the standard library. The browser tests use the class below.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str | None:
    """A Chromium or Chrome on the PATH."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. ``errors`` collects console errors, uncaught exceptions, violations of the CSP and failed requests."""

    def __init__(self, executable: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="mainspring-browser-")
        their_in, self._out = _pipe()
        self._in, their_out = _pipe()
        null = os.open(os.devnull, os.O_RDWR)
        actions = [
            (os.POSIX_SPAWN_DUP2, a, b)
            for a, b in ((null, 0), (null, 1), (null, 2), (their_in, 3), (their_out, 4))
        ]
        arguments = [executable, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self.pid = os.posix_spawn(executable, arguments, os.environ, file_actions=actions, setpgroup=0)
        for number in (their_in, their_out, null):
            os.close(number)
        self._ids = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; raises RuntimeError with the browser's reason."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(60)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def look(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Be a screen of this width, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def open(self, url: str) -> None:
        """Go there and wait until it is loaded and its charts are drawn."""
        self._events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 30
        while not any(e["method"] == "Page.loadEventFired" for e in self._events):
            self._receive(max(0.1, deadline - time.monotonic()))
        drawn = "[...document.querySelectorAll('figure.chart')].every((f) => !window.vegaEmbed || f.querySelector('.plot svg'))"
        self.wait(drawn)

    def wait(self, expression: str, *, seconds: float = 20) -> None:
        """Until the expression is true; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return answer["result"].get("value")

    def picture(self, file: Path, *, full: bool = True) -> None:
        """The page as PNG, whole or only what fits the screen."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]
        file.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End the browser and remove its profile."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise RuntimeError("the browser has ended")
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


def _pipe() -> tuple[int, int]:
    """A pipe whose ends lie above the numbers that the child gets."""
    ends = os.pipe()
    high = [fcntl.fcntl(e, fcntl.F_DUPFD_CLOEXEC, 20) for e in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


def main(login: str, folder: Path, paths: list[str]) -> int:
    executable = find_browser()
    if executable is None:
        print("no Chromium or Chrome on the PATH; type: sudo apt-get install chromium", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    address = urlsplit(login)
    browser = Browser(executable)
    try:
        browser.look(1440)
        browser.open(login)
        browser.wait("location.pathname === '/'")
        for path in paths:
            name = "".join(c if c.isalnum() else "-" for c in path.strip("/"))[:60] or "overview"
            for suffix, width, dark in (("", 1440, False), ("-phone", 390, False), ("-dark", 1440, True)):
                browser.look(width, dark=dark)
                browser.open(f"{address.scheme}://{address.netloc}{path}")
                browser.picture(folder / f"{name}{suffix}.png")
        for error in browser.errors:
            print("console:", error, file=sys.stderr)
    finally:
        browser.close()
    return 1 if browser.errors else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:] or ["/"]))
