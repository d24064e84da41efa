"""Self-contained HTML pages, rendered from Jinja templates."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from genexp.recorders.latent_plots import build_security_policy
from genexp.reports.curves import Chart
from genexp.run_dir.files import write_file

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE_DIR = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class TableCell:
    """A table cell of an HTML page."""

    text: str
    sort_value: float | None = None  # number to sort by; None sorts by `text`
    link: str | None = None  # relative URL
    state: str | None = None  # state of a run, used as CSS class
    tooltip: str | None = None


def write_page(path: Path, template: str, charts: Sequence[Chart], **content: Any) -> None:
    """Write a page to `path`, atomically. Raises OSError.

    Text from users and runs is escaped: `content` by the template, `charts` here.
    """
    from markupsafe import Markup  # installed with jinja2, which is slow to import

    data = json.dumps(charts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = (TEMPLATE_DIR / "page.js").read_text(encoding="utf-8")
    scripts = [script, _read_plotly_js()] if charts else [script]
    text = (
        _create_template_environment()
        .get_template(template)
        .render(
            **content,
            policy=Markup(build_security_policy(scripts)),
            chart_count=len(charts),
            chart_data=Markup(data),
            plotly=_encode_plotly_js() if charts else "",
            style=Markup((TEMPLATE_DIR / "style.css").read_text(encoding="utf-8")),
            script=Markup(script),
        )
    )
    write_file(path, text.encode(errors="replace"))  # file names may not be valid UTF-8


def build_relative_url(target: Path, page: Path) -> str:
    """Return the URL of `target` relative to the directory of `page`."""
    return quote(os.fsencode(os.path.relpath(target.resolve(), page.resolve().parent)))


@cache
def _create_template_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATE_DIR)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def _read_plotly_js() -> str:
    file = distribution("plotly").locate_file("plotly/package_data/plotly.min.js")
    return Path(str(file)).read_text(encoding="utf-8")


@cache
def _encode_plotly_js() -> str:
    """Return plotly.js, gzipped and base64-encoded. This reduces each page from 5 MB to 2 MB."""
    return base64.b64encode(gzip.compress(_read_plotly_js().encode(), compresslevel=1, mtime=0)).decode()
