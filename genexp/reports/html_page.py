"""HTML pages, rendered from Jinja templates. They share plotly.js, or consist of one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genexp.recorders.latent_plots import (
    LOADER_FILE,
    build_security_policy,
    encode_plotly_js,
    read_plotly_js,
    write_plotly_file,
)
from genexp.reports.curves import Chart
from genexp.reports.embedded_images import build_relative_url
from genexp.run_dir.files import write_file

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE_DIR = Path(__file__).parent / "templates"


def write_page(
    path: Path, template: str, charts: Sequence[Chart], assets_dir: Path | None, **content: Any
) -> None:
    """Write a page to `path`, atomically. Raises OSError.

    plotly.js is in `assets_dir`, or in the page without it. Text from users and runs is escaped: `content` by the
    template, `charts` here.
    """
    from markupsafe import Markup  # installed with jinja2, which is slow to import

    data = json.dumps(charts, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = "".join(file.read_text(encoding="utf-8") for file in (LOADER_FILE, TEMPLATE_DIR / "page.js"))
    is_shared = bool(charts) and assets_dir is not None
    text = render_template(
        template,
        **content,
        policy=Markup(build_security_policy([script, read_plotly_js()] if charts else [script])),
        chart_count=len(charts),
        chart_data=Markup(data),
        plotly_url=build_relative_url(write_plotly_file(assets_dir), path.parent)
        if assets_dir and is_shared
        else "",
        plotly="" if is_shared or not charts else encode_plotly_js(),
        style=Markup((TEMPLATE_DIR / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
    )
    write_file(path, text.encode(errors="replace"))  # file names may not be valid UTF-8


def render_template(template: str, **content: Any) -> str:
    """Return a template with `content`, whose text is escaped."""
    return _create_template_environment().get_template(template).render(**content)


@cache
def _create_template_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATE_DIR)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
