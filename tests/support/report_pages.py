"""HTML reports: charts, screenshots and text that must be escaped."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.support.browser import Browser

HTML_INJECTION = '</script><img src=x onerror="document.title=1"><b>&amp;'


def read_charts(page: Path) -> list[dict]:
    """Return the data of the charts of a page."""
    (text,) = re.findall(
        r'<script type="application/json" id="charts">(.*?)</script>', page.read_text(), re.DOTALL
    )
    content: list[dict] = json.loads(text)
    return content


def save_screenshot(browser: Browser, name: str, tmp_path: Path) -> None:
    """Save a screenshot to $GENEXP_SCREENSHOTS, or to `tmp_path` if it is not set."""
    browser.save_screenshot(Path(os.environ.get("GENEXP_SCREENSHOTS", tmp_path)) / f"{name}.png")
