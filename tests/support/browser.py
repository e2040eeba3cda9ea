"""A headless Chromium that tests drive by Chrome DevTools Protocol over a pipe: no port, and no library besides."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Browser", "chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: The browser reads descriptor 3 and writes 4, whatever numbers the pipes have here.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str | None:
    """Return the path of a browser that this can drive, or None: the pipe needs POSIX's file descriptors."""
    if sys.platform == "win32":
        return None
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One page in one browser; what went wrong in it is gathered in `problems`.

    Parameters
    ----------
    path
        Of the browser.
    timeout
        Seconds to wait for any answer.
    """

    def __init__(self, path: str, timeout: float = 60.0) -> None:
        self.problems: list[str] = []
        self._served: tuple[str, ...] = ()
        self._timeout, self._numbers, self._buffer = timeout, itertools.count(1), b""
        self._events: list[dict[str, Any]] = []
        self._folder = tempfile.mkdtemp(prefix="browser-")
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
            f"--user-data-dir={self._folder}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _START, str(to_read), str(to_write), path, *options],
            pass_fds=(to_read, to_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        try:
            target = self._send("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
            attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True}, None)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and all its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- the protocol -------------------------------------------------------------------------------------------

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the page and return what it answers."""
        return self._send(method, parameters, self._session)

    def _send(self, method: str, parameters: dict[str, Any], session: str | None) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what a page must not do: errors, warnings, violations of its policy, requests."""
        method, parameters = event.get("method"), event.get("params", {})
        self._events.append(event)
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(f"console: {parameters['args']}")
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"log: {parameters['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            if not address.startswith(("file:", "data:", "blob:", *self._served)):
                self.problems.append(f"request: {address}")

    # -- what tests do ------------------------------------------------------------------------------------------

    def open(
        self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True
    ) -> None:
        """Load a page and wait until it has loaded; what an earlier page did wrong is forgotten.

        A page that is served, whose address is given, may ask its own server.
        """
        self.resize(width, height)
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.send(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                # Else a click may be aimed at what is still moving.
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )
        self.problems.clear()
        self._events.clear()
        self._served = (page.partition("?")[0],) if isinstance(page, str) else ()
        self.send("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.wait_for("Page.loadEventFired")

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window another size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def wait_for(self, method: str) -> dict[str, Any]:
        """Wait for an event and return its parameters; it is used up."""
        while True:
            for place, event in enumerate(self._events):
                if event.get("method") == method:
                    parameters: dict[str, Any] = self._events.pop(place).get("params", {})
                    return parameters
            self._note(self._receive())

    def run(self, script: str) -> Any:
        """Return the value of an expression of the page, awaited if it is a promise."""
        answer = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = time.monotonic() + self._timeout
        while not (value := self.run(script)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never true: {script}")
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Click on the middle of an element, as a hand does: what lies above it gets the click."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1
            )

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key; `code` is its Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )  # fmt: skip

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to a control that takes one, as its dialog does."""
        found = self.send("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.send("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def keep_downloads(self, folder: Path) -> None:
        """Let the page download files, which come to lie in `folder`."""
        options = {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": True}
        self._send("Browser.setDownloadBehavior", options, None)

    def downloaded(self) -> str:
        """Wait for a download to be complete and return the name that the page gave it."""
        name: str = self.wait_for("Browser.downloadWillBegin")["suggestedFilename"]
        while self.wait_for("Browser.downloadProgress")["state"] != "completed":
            pass
        return name

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Save what the window shows, or the whole page, as PNG."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
