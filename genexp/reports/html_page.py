"""Pages: data and a template become one file that needs no network."""

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

from genexp.reports.curves import Chart

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE_DIR = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class TableCell:
    """A cell of a table in a page."""

    text: str
    sort_value: float | None = None  # to sort by; None sorts by the text
    link: str | None = None
    state: str | None = None  # of a run: it has a color
    tooltip: str | None = None  # what else there is to know


def write_page(path: Path, template: str, charts: Sequence[Chart], **content: Any) -> None:
    """Write a page. What a user or a run has written is escaped: `content` by the template, `charts` here."""
    from markupsafe import Markup  # comes with jinja2, which takes a while to import

    data = json.dumps(charts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    text = (
        _create_template_environment()
        .get_template(template)
        .render(
            **content,
            chart_count=len(charts),
            chart_data=Markup(data),
            plotly=_load_plotly_js() if charts else "",
            style=Markup((TEMPLATE_DIR / "style.css").read_text(encoding="utf-8")),
            script=Markup((TEMPLATE_DIR / "page.js").read_text(encoding="utf-8")),
        )
    )
    temporary_path = path.with_name(f"{path.name}.tmp")
    temporary_path.write_text(text, encoding="utf-8")
    temporary_path.replace(path)


def build_relative_url(target: Path, page: Path) -> str:
    """Return the address of a file as seen from the page."""
    return quote(os.path.relpath(target.resolve(), page.resolve().parent))


@cache
def _create_template_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATE_DIR)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def _load_plotly_js() -> str:
    """Return plotly.js, packed: 5 MB become 2, in each of many pages."""
    file = distribution("plotly").locate_file("plotly/package_data/plotly.min.js")
    script = Path(str(file)).read_bytes()
    return base64.b64encode(gzip.compress(script, compresslevel=1)).decode()
