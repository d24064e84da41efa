"""Static and interactive scatter plots of latent codes, and the Content-Security-Policy of pages with plots."""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import html
import io
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from genexp.images.fonts import use_fonts_for
from genexp.run_dir.files import create_dir, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from genexp.snapshot import FinalArtifacts

LOADER_FILE = Path(__file__).parent / "load_plotly.js"  # defines `loadPlotly`
STYLE_PART = 500_000  # characters of one style property
LATENTS_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<title>{title}</title>{style}<link rel="stylesheet" href="{link}"></head>
<body><h1>{title}</h1><div id="latents" role="img" aria-label="{title}"><img src="latents.png" alt="{title}"></div>
<script type="text/plain" id="plotly"></script>
<script type="application/json" id="figure">{figure}</script>
<script>{script}</script></body></html>
"""
LATENTS_SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const { data, layout } = JSON.parse(document.getElementById("figure").textContent);
  const [color, line] = dark.matches ? ["#e4e7ea", "#3a424a"] : ["#1d2126", "#dfe2e5"];
  const clear = "rgba(0, 0, 0, 0)";
  for (const axes of [layout, layout.scene ?? {}]) {
    for (const axis of [axes.xaxis, axes.yaxis, axes.zaxis]) {
      Object.assign(axis ?? {}, { color, gridcolor: line, zerolinecolor: line });
    }
  }
  Object.assign(layout, { font: { color }, paper_bgcolor: clear, plot_bgcolor: clear });
  Plotly.react("latents", data, layout, { responsive: true, displayModeBar: false });
}
addEventListener("load", async () => {
  if (!await loadPlotly()) return;
  document.getElementById("latents").replaceChildren();
  draw();
  dark.addEventListener("change", draw);
});
"""
LATENTS_STYLE = (
    "<style>:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif } h1 { font-size: 1.2rem } "
    "#latents { height: 88vh } @media (prefers-color-scheme: dark) { html { background: #14171a } }</style>"
)
MAX_LABELED_POINTS = 200  # points with a text label; in 3-D, colors alone are hard to distinguish


def write_latents_figure(path: Path, artifacts: FinalArtifacts, class_names: Sequence[str], title: str) -> None:
    """Write a scatter plot of codes (samples, 2 or 3) to `path`, colored by class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert artifacts.codes is not None
    with use_fonts_for(class_names):
        is_3d = artifacts.codes.shape[1] == 3
        figure = Figure(figsize=(9, 7) if is_3d else (7.6, 6.4), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_subplot(projection="3d" if is_3d else None)
        for name, color, points in _iter_class_points(artifacts, class_names):
            size, alpha = (9, 0.45) if is_3d else (9, 0.75)
            axes.scatter(*points.T, s=size, alpha=alpha, color=color, label=name, linewidths=0)
        if is_3d:
            _label_points(axes, artifacts, class_names)
            axes.set_zlabel("code 3")
            axes.view_init(elev=22, azim=-55)
            axes.set_box_aspect((1, 1, 0.9), zoom=1.12)
        else:
            axes.set_aspect("equal", adjustable="datalim")
            axes.grid(color="#ececec", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlabel="code 1", ylabel="code 2")
        axes.set_title(title, fontweight="bold", parse_math=False)
        _add_legend(figure, axes)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    write_file(path, content.getvalue())


def write_latents_html(
    path: Path, artifacts: FinalArtifacts, class_names: Sequence[str], title: str, assets_dir: Path
) -> None:
    """Write a page with an interactive scatter plot. It needs no network: plotly.js is in `assets_dir`."""
    assert artifacts.codes is not None
    is_3d = artifacts.codes.shape[1] == 3
    traces = [
        {
            **dict(zip("xyz", points.T.tolist(), strict=False)),
            "type": "scatter3d" if is_3d else "scatter",
            "mode": "markers",
            "marker": {"size": 3 if is_3d else 6, "color": _format_css_color(color), "opacity": 0.8},
            "name": html.escape(name, quote=False),
            "hovertemplate": "%{fullData.name}<extra></extra>",
        }
        for name, color, points in _iter_class_points(artifacts, class_names)
    ]
    axes = {f"{axis}axis": {"title": {"text": f"code {position}"}} for position, axis in enumerate("xyz", start=1)}
    scene = {**axes, "aspectmode": "data", "camera": {"eye": {"x": 1.45, "y": -1.55, "z": 0.75}}}
    layout: dict[str, Any] = {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0} if is_3d else {"l": 40, "r": 10, "t": 10, "b": 40},
        "legend": {"itemsizing": "constant", "orientation": "h"},
        **({"scene": scene} if is_3d else {"xaxis": axes["xaxis"], "yaxis": axes["yaxis"] | {"scaleanchor": "x"}}),
    }
    figure = json.dumps({"data": traces, "layout": layout}, ensure_ascii=False).replace("<", "\\u003c")
    script = LOADER_FILE.read_text(encoding="utf-8") + LATENTS_SCRIPT
    page = LATENTS_TEMPLATE.format(
        policy=build_security_policy([script, read_plotly_js()]),
        style=LATENTS_STYLE,
        title=html.escape(title),
        link=quote(os.path.relpath(write_plotly_file(assets_dir), path.parent)),
        figure=figure,
        script=script,
    )
    write_file(path, page.encode(errors="replace"))


def build_security_policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy with which a page runs the inline `scripts`, and no other ones.

    It loads style sheets and images from the place of the page, and nothing else. Text that got past the escaping
    could then still run no code. Plotly needs inline styles; it draws every chart of this package without
    `unsafe-eval`.
    """
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    script_sources = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {script_sources}; style-src 'unsafe-inline' 'self'; "
        f"img-src 'self' data: blob:; media-src 'self' data:; base-uri 'none'; form-action 'none'"
    )


def write_plotly_file(assets_dir: Path) -> Path:
    """Write plotly.js as a style sheet into `assets_dir`, if it is not there, and return its path.

    A page that is opened from a disk may read style sheets of other files, but not their text. It checks the hash
    of a script that it builds itself, but not that of another file. Raises OSError.
    """
    if assets_dir.is_symlink():
        raise OSError(errno.ELOOP, "a link, not a folder", str(assets_dir))
    path = assets_dir / f"plotly-{version('plotly')}.css"
    if not path.is_file() or not path.stat().st_size:
        encoded = encode_plotly_js()
        parts = (encoded[start : start + STYLE_PART] for start in range(0, len(encoded), STYLE_PART))
        properties = "".join(f'--part-{index}:"{part}";' for index, part in enumerate(parts))
        create_dir(assets_dir)
        write_file(path, f"/* plotly.js (MIT license, Plotly, Inc.), gzipped */#plotly{{{properties}}}".encode())
    return path


@cache
def read_plotly_js() -> str:
    """Return the text of plotly.js."""
    file = distribution("plotly").locate_file("plotly/package_data/plotly.min.js")
    return Path(str(file)).read_text(encoding="utf-8")


@cache
def encode_plotly_js() -> str:
    """Return plotly.js, gzipped and base64-encoded: 2 MB instead of 5 MB."""
    return base64.b64encode(gzip.compress(read_plotly_js().encode(), compresslevel=4, mtime=0)).decode()


def get_class_name(label: int, class_names: Sequence[str]) -> str:
    """Return the name of a class, or its number if the data set has no name for it."""
    return class_names[label] if 0 <= label < len(class_names) else str(label)


def _iter_class_points(
    artifacts: FinalArtifacts, class_names: Sequence[str]
) -> Iterator[tuple[str, tuple[float, ...], np.ndarray]]:
    """Yield (name, RGBA color, points) of each class, points being (samples, features).

    Without labels, all samples are one class.
    """
    assert artifacts.codes is not None
    codes = artifacts.codes.numpy()
    labels = np.zeros(len(codes), int) if artifacts.labels is None else artifacts.labels.numpy()
    unique_labels = np.unique(labels)
    from genexp.images.scatter import pick_colors  # imports torch, which commands on finished runs do not need

    colors = pick_colors(len(unique_labels))
    for label, color in zip(unique_labels.tolist(), colors, strict=True):
        name = "held-out samples" if artifacts.labels is None else get_class_name(label, class_names)
        yield name, tuple(color.tolist()), codes[labels == label]


def _label_points(axes: Any, artifacts: FinalArtifacts, class_names: Sequence[str]) -> None:
    if artifacts.labels is None:
        return
    style: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "center", "parse_math": False}
    for name, color, points in _iter_class_points(artifacts, class_names):
        dark_color = tuple(0.75 * channel for channel in color[:3])
        for point in points[: round(MAX_LABELED_POINTS * len(points) / len(artifacts.labels))]:
            axes.text(*point, name, color=dark_color, **style)


def _add_legend(figure: Figure, axes: Axes) -> None:
    entries = axes.get_legend_handles_labels()
    legend = figure.legend(*entries, loc="outside right center", frameon=False, markerscale=2)
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        assert handle is not None
        handle.set_alpha(1)
        text.set_parse_math(False)  # a $ in a class name does not start a formula


def _format_css_color(color: tuple[float, ...]) -> str:
    return "rgb({}, {}, {})".format(*(round(255 * channel) for channel in color[:3]))
