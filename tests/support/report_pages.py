"""HTML reports: charts, screenshots and text that must be escaped."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.support.browser import Browser

HTML_INJECTION = '</script><img src=x onerror="document.title=1"><b>&amp;'

# Text that would run a script, load an image or draw a link if a page or a chart took it for HTML.
HOSTILE_TEXT = (
    '"\'></title></style></script><img src=x onerror="window.injected=1"><svg onload="window.injected=1">'
    '<a href="javascript:window.injected=1">a</a><a href="https://example.org/">b</a>&amp;{{7*7}}%{y}$x$'
)


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


def assert_nothing_injected(browser: Browser, page: Path, own_links: int = 0) -> None:
    """Open a page, draw all its charts, and check that no text of it became an element, a script or a request."""
    browser.open(page)
    for index in range(browser.run("return document.querySelectorAll('.chart').length")):
        chart = f"document.querySelectorAll('.chart')[{index}]"
        browser.run(f"{chart}.scrollIntoView()")
        browser.wait(f"return {chart}.dataset.drawn === 'yes'")
    assert browser.run("return window.injected") is None
    assert browser.run("return document.querySelectorAll('img[src=x], svg[onload]').length") == 0
    links = "document.querySelectorAll('a[href]:not(.plotlyjsicon)')"  # without the logo of plotly
    assert browser.run(f"return {links}.length") == own_links
    requests = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == []
    assert [
        error for error in browser.read_errors() if "WebGL" not in error and "willReadFrequently" not in error
    ] == []


# Texts whose contrast with their background is below 4.5 to 1, the limit of WCAG 2 (level AA).
FAINT_TEXTS = """
const parse = (color) => (color.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const luminance = (color) => parse(color).slice(0, 3).map((value) => value / 255)
  .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
const isOpaque = (element) => (parse(getComputedStyle(element).backgroundColor)[3] ?? 1) === 1;
const findBackground = (element) => {
  while (element.parentElement && !isOpaque(element)) element = element.parentElement;
  return getComputedStyle(element).backgroundColor;
};
return [...document.querySelectorAll("body *")].filter((element) => {
  return [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
    && element.checkVisibility({ visibilityProperty: true });
}).map((element) => {
  const style = getComputedStyle(element);
  const text = luminance(element.closest("svg") ? style.fill : style.color);
  const values = [text, luminance(findBackground(element))];
  return [(Math.max(...values) + 0.05) / (Math.min(...values) + 0.05), element.textContent.trim().slice(0, 40)];
}).filter(([contrast]) => contrast < 4.5);
"""


def assert_readable(browser: Browser, page: Path, width: int, *, is_dark: bool) -> None:
    """Open a page, draw its charts, and check errors, overflow, the contrast of texts and the texts of images."""
    browser.set_viewport(width, 900, is_dark=is_dark)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true })")
    for index in range(browser.run("return document.querySelectorAll('.chart').length")):
        chart = f"document.querySelectorAll('.chart')[{index}]"
        browser.run(f"{chart}.scrollIntoView()")
        browser.wait(f"return {chart}.dataset.drawn === 'yes'")
    assert browser.read_errors() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run(FAINT_TEXTS) == []
    assert browser.run("return document.querySelectorAll('img:not([alt]), img[alt=\"\"]').length") == 0
    controls = "[...document.querySelectorAll('input, select')]"
    unnamed = f"{controls}.filter((element) => !element.labels.length && !element.ariaLabel)"
    assert browser.run(f"return {unnamed}.length") == 0
