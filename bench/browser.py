"""A page in headless Chromium, over its debugging pipe: what it asks for, says, and looks like.

Needs the program chromium and nothing else. Used by tests/pipeline/test_report_browser.py and by
bench/report_images.py.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60.0


@dataclass
class Seen:
    """What a page did while it was open: addresses that it asked for, and complaints of the browser."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class Page:
    """One tab. `seen` fills while it loads."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.seen = Seen()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def show(self, file: Path, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Load a file in a window of that size, and wait until it stands still."""
        self.seen = Seen()
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while self.value("document.readyState + location.protocol") != "completefile:":
            if time.monotonic() > end:
                raise TimeoutError("the page does not load")
            time.sleep(0.05)

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def picture(self, top: int, width: int, height: int) -> bytes:
        """A PNG of a part of the page, from `top`."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        found = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send one command and wait for its answer; events that come before it are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self._note(found)

    def _message(self) -> Any:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], SECONDS)[0]:
                raise TimeoutError("the browser does not answer")
            if not (data := os.read(self._read, 1 << 20)):
                raise RuntimeError("the browser has ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: Any) -> None:
        method, what = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.seen.requests.append(what["request"]["url"])
        elif method == "Log.entryAdded":
            self.seen.complaints.append(f"{what['entry']['level']}: {what['entry']['text']}")
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.seen.complaints.append(f"{method}: {json.dumps(what)[:300]}")


@contextmanager
def browser() -> Iterator[Page]:
    """A tab in a browser of its own, with an empty profile, both gone at the end."""
    if CHROMIUM is None:
        raise RuntimeError("chromium is not installed")
    to_child, write = os.pipe()
    read, from_child = os.pipe()
    profile = tempfile.mkdtemp(prefix="barnraise-chromium-")
    # The browser reads commands from descriptor 3 and answers on 4.
    start = f'exec "$@" 3<&{to_child} 4>&{from_child}'
    child = subprocess.Popen(
        ["bash", "-c", start, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_child, from_child), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_child)
    os.close(from_child)
    try:
        yield Page(write, read)
    finally:
        os.close(write)
        os.close(read)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        shutil.rmtree(profile, ignore_errors=True)
