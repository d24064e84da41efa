"""Headless Chromium for tests, controlled through Selenium."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses to run as root with its sandbox
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
)
LOAD_TIMEOUT_SECONDS = 60
POLL_SECONDS = 0.02

_missing = ", ".join(path.name for path in (CHROMIUM, CHROMEDRIVER) if not path.exists())
needs_browser = pytest.mark.skipif(bool(_missing), reason=f"not installed: {_missing}")


@dataclass(frozen=True)
class Browser:
    """Browser with one page."""

    driver: Chrome

    def open(self, path: Path) -> float:
        """Open a file, wait until its charts are ready, and return the elapsed time in seconds."""
        start = time.monotonic()
        self.visit(path.resolve().as_uri())
        self.wait("return document.body.dataset.ready === 'yes' || !document.querySelector('.chart')")
        return time.monotonic() - start

    def visit(self, url: str) -> None:
        """Load a URL."""
        self.driver.get(url)

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return its result."""
        return self.driver.execute_script(script)

    def wait(self, script: str, seconds: float = 20) -> None:
        """Wait until a script returns a true value."""
        WebDriverWait(self.driver, seconds, POLL_SECONDS).until(lambda _: self.run(script), script)

    def read_errors(self) -> list[str]:
        """Return the console's warnings and errors since the last call."""
        return [
            entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")
        ]

    def set_viewport(self, width: int, height: int, *, is_dark: bool = False) -> None:
        """Set the size of the viewport, emulating a phone if it is narrow, and the preferred color scheme."""
        is_phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if is_phone else 1, "mobile": is_phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Drag the mouse across an element; `begin` and `end` are fractions of its width."""
        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        width = element.rect["width"]
        # Selenium measures offsets from the center of the element.
        first, middle, last = (round((x - 0.5) * width) for x in (begin, (begin + end) / 2, end))
        actions = ActionChains(self.driver, duration=0)
        actions.move_to_element_with_offset(element, first, 0).click_and_hold()
        actions.move_to_element_with_offset(element, middle, 0).move_to_element_with_offset(element, last, 0)
        actions.release().perform()

    def save_screenshot(self, path: Path) -> None:
        """Save a screenshot of the viewport as PNG."""
        path.write_bytes(self.driver.get_screenshot_as_png())  # Selenium's save_screenshot hides an OSError


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile directory, and quit it at the end of the block."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*CHROMIUM_ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With an explicit path, Selenium does not look for a driver to download.
    service = ChromeService(str(CHROMEDRIVER))
    with Chrome(options, service) as driver:
        driver.set_page_load_timeout(LOAD_TIMEOUT_SECONDS)
        yield Browser(driver)
