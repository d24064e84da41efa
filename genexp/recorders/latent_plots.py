"""Static and interactive scatter plots of latent codes, and the Content-Security-Policy of pages with plots."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genexp.images.fonts import use_fonts_for
from genexp.run_dir.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from genexp.snapshot import FinalArtifacts  # imports torch, which commands on finished runs do not need

SCRIPT_PATTERN = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)
# Lightness is inverted in dark mode, hues are kept. The colors of Plotly's template are not known to the page.
DARK_MODE_STYLE = (
    "<style>@media (prefers-color-scheme: dark) { html { background: #141414 } "
    ".plot-container { filter: invert(0.92) hue-rotate(180deg) } }</style>"
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
        axes.set_xlabel("code 1")
        axes.set_ylabel("code 2")
        axes.set_title(title, fontweight="bold", parse_math=False)
        _add_legend(figure, axes)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    write_file(path, content.getvalue())


def write_latents_html(path: Path, artifacts: FinalArtifacts, class_names: Sequence[str], title: str) -> None:
    """Write a page with an interactive scatter plot. It works offline, since it embeds plotly (5 MB)."""
    from plotly import graph_objects
    from plotly.io import to_html

    assert artifacts.codes is not None
    is_3d = artifacts.codes.shape[1] == 3
    figure = graph_objects.Figure()
    for name, color, points in _iter_class_points(artifacts, class_names):
        coordinates = dict(zip("xyz", points.T.tolist(), strict=False))
        marker = {"size": 3 if is_3d else 6, "color": _format_css_color(color), "opacity": 0.8}
        scatter = graph_objects.Scatter3d if is_3d else graph_objects.Scatter
        figure.add_trace(
            scatter(
                **coordinates,
                mode="markers",
                marker=marker,
                name=html.escape(name, quote=False),
                hovertemplate="%{fullData.name}<extra></extra>",
            )
        )
    axes = {f"{axis}axis": {"title": {"text": f"code {position}"}} for position, axis in enumerate("xyz", start=1)}
    camera = {"camera": {"eye": {"x": 1.45, "y": -1.55, "z": 0.75}}}
    layout = {"scene": {**axes, **camera}} if is_3d else {"xaxis": axes["xaxis"], "yaxis": axes["yaxis"]}
    margin = {"l": 20, "r": 20, "t": 60, "b": 20}
    figure.update_layout(
        title={"text": html.escape(title, quote=False)}, template="plotly_white", margin=margin, **layout
    )
    figure.update_layout(legend={"itemsizing": "constant"})
    # A fixed identifier: equal runs have equal pages.
    page = to_html(figure, include_plotlyjs=True, default_height="96vh", div_id="latents")
    policy = build_security_policy(SCRIPT_PATTERN.findall(page))
    head = f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">{DARK_MODE_STYLE}'
    write_file(path, page.replace("<head>", head, 1))


def build_security_policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy with which a page runs the inline `scripts`, and loads nothing.

    Text that got past the escaping could then still run no code. Plotly needs inline styles; it draws every chart
    of this package without `unsafe-eval`.
    """
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    script_sources = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {script_sources}; style-src 'unsafe-inline'; img-src data:; "
        f"media-src data:; base-uri 'none'; form-action 'none'"
    )


def get_class_name(label: int, class_names: Sequence[str]) -> str:
    """Return the name of a class, or its number if the data set has no name for it."""
    return class_names[label] if 0 <= label < len(class_names) else str(label)


def _iter_class_points(
    artifacts: FinalArtifacts, class_names: Sequence[str]
) -> Iterator[tuple[str, tuple[float, ...], np.ndarray]]:
    """Yield (name, RGBA color, points) of each class, points being (samples, features).

    Without labels, all samples are one class.
    """
    from matplotlib import colormaps

    assert artifacts.codes is not None
    codes = artifacts.codes.numpy()
    labels = np.zeros(len(codes), int) if artifacts.labels is None else artifacts.labels.numpy()
    unique_labels = np.unique(labels)
    colors = colormaps["rainbow"](np.linspace(0, 1, len(unique_labels)))
    for label, color in zip(unique_labels.tolist(), colors, strict=True):
        name = "held-out samples" if artifacts.labels is None else get_class_name(label, class_names)
        yield name, tuple(color.tolist()), codes[labels == label]


def _label_points(axes: Any, artifacts: FinalArtifacts, class_names: Sequence[str]) -> None:
    if artifacts.labels is None:
        return
    for name, color, points in _iter_class_points(artifacts, class_names):
        num_labeled = round(MAX_LABELED_POINTS * len(points) / len(artifacts.labels))
        for point in points[:num_labeled]:
            axes.text(
                *point,
                name,
                color=tuple(0.75 * channel for channel in color[:3]),
                fontsize=7,
                ha="center",
                va="center",
                parse_math=False,
            )


def _add_legend(figure: Figure, axes: Axes) -> None:
    legend = figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right center", frameon=False, markerscale=2
    )
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        assert handle is not None
        handle.set_alpha(1)
        text.set_parse_math(False)  # a $ in a class name does not start a formula


def _format_css_color(color: tuple[float, ...]) -> str:
    return "rgb({}, {}, {})".format(*(round(255 * channel) for channel in color[:3]))
