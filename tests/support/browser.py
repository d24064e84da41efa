"""A headless Chromium that tests drive through chromedriver."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
DRIVER = Path("/usr/bin/chromedriver")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
)
needs_browser = pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="there is no Chromium here")


@dataclass(frozen=True)
class Browser:
    """A browser with one page."""

    session: str  # address of the driver's session

    def open(self, path: Path) -> float:
        """Open a file from disk, wait for its charts to be ready, and return how long that took in seconds."""
        begun = time.monotonic()
        self.visit(path.resolve().as_uri())
        self.wait("return document.body.dataset.ready === 'yes' || !document.querySelector('.chart')")
        return time.monotonic() - begun

    def visit(self, address: str) -> None:
        """Open an address."""
        _ask(f"{self.session}/url", url=address)

    def run(self, script: str) -> Any:
        """Return what a script in the page returns."""
        return _ask(f"{self.session}/execute/sync", script=script, args=[])

    def wait(self, script: str, seconds: float = 20) -> None:
        """Wait until a script returns true."""
        until = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < until, script
            time.sleep(0.02)

    def errors(self) -> list[str]:
        """Return what the page complained about since it was asked last."""
        entries = _ask(f"{self.session}/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Make the window another size, a phone's where it is narrow, in a light or a dark mode."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Drag the mouse over an element, from one part of its width to another."""
        box = self.run(f"return document.querySelector('{selector}').getBoundingClientRect()")
        y = box["y"] + box["height"] / 2
        places = [box["x"] + part * box["width"] for part in (begin, (begin + end) / 2, end)]
        kinds = ("mousePressed", "mouseMoved", "mouseMoved", "mouseReleased")
        for kind, x in zip(kinds, (places[0], *places[1:], places[2]), strict=True):
            self._command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def picture(self, path: Path) -> None:
        """Save a picture of the window."""
        path.write_bytes(base64.b64decode(_ask(f"{self.session}/screenshot")))

    def _command(self, name: str, **parameters: Any) -> Any:
        return _ask(f"{self.session}/goog/cdp/execute", cmd=name, params=parameters)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser, and end it with the block."""
    with subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            assert driver.stdout is not None
            port = next(
                found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line))
            )
            session = _start(f"http://127.0.0.1:{port}/session", profile)
            try:
                yield Browser(session)
            finally:
                _ask(session, method="DELETE")
        finally:
            driver.terminate()


def _start(address: str, profile: Path) -> str:
    arguments = [*OPTIONS, f"--user-data-dir={profile}"]
    wishes = {
        "browserName": "chrome",
        "goog:loggingPrefs": {"browser": "ALL"},
        "goog:chromeOptions": {"binary": str(CHROMIUM), "args": arguments},
    }
    return f"{address}/{_ask(address, capabilities={'alwaysMatch': wishes})['sessionId']}"


def _ask(address: str, method: str | None = None, **body: Any) -> Any:
    # A screenshot is asked for without a body.
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["value"]
