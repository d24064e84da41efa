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

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Cell:
    """A cell of a table in a page."""

    text: str
    value: float | None = None  # to sort by; None sorts by the text
    link: str | None = None
    state: str | None = None  # of a run: it has a colour
    title: str | None = None  # what else there is to know


def write_page(path: Path, template: str, charts: Sequence[Chart], **content: Any) -> None:
    """Write a page. What a user or a run has written is escaped: `content` by the template, `charts` here."""
    from markupsafe import Markup  # comes with jinja2, which takes a while to import

    data = json.dumps(charts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    text = (
        _templates()
        .get_template(template)
        .render(
            **content,
            chart_count=len(charts),
            chart_data=Markup(data),
            plotly=_plotly() if charts else "",
            style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
            script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        )
    )
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def link(target: Path, page: Path) -> str:
    """Return the address of a file as seen from the page."""
    return quote(os.path.relpath(target.resolve(), page.resolve().parent))


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def _plotly() -> str:
    """Return plotly.js, packed: 5 MB become 2, in each of many pages."""
    file = distribution("plotly").locate_file("plotly/package_data/plotly.min.js")
    code = Path(str(file)).read_bytes()
    return base64.b64encode(gzip.compress(code, compresslevel=1)).decode()
