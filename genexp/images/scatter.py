"""Two-dimensional projections (PCA, t-SNE), scatter plots of clusters, and line plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genexp.images.fonts import use_fonts_for

FIGURE_INCHES = 6.4  # height; a legend adds to the width
DPI = 100
MARGIN_FRACTION = 0.08  # margin on each side, relative to the larger extent of the points


def project_pca(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Project `points` (n, features) and `others` (m, features) onto the first two principal axes of `points`.

    Return (n, 2) and (m, 2). Two features are returned unchanged, and one feature is padded with a zero.
    """
    features = points.shape[1]
    if features <= 2:
        pad = (0, 2 - features)
        return torch.nn.functional.pad(points, pad), torch.nn.functional.pad(others, pad)
    mean = points.mean(0)
    centered = points - mean
    axes = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -2:].flip(1)  # (features, 2)
    # The sign of an eigenvector is arbitrary. It is fixed, so that plots of the same points are equal.
    largest_loadings = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * largest_loadings.sign()
    return centered @ axes, (others - mean) @ axes


def embed_tsne(codes: Tensor) -> Tensor:
    """Return the t-SNE embedding (n, 2) of codes (n, features), n ≥ 3 (van der Maaten & Hinton 2008).

    A thousand codes take seconds. The seed comes from torch's global generator.
    """
    from sklearn.manifold import TSNE

    seed = int(torch.randint(2**31, ()))
    perplexity = min(30.0, (len(codes) - 1) / 3)
    # PCA initialization fails for identical codes, which have no direction of greatest variance.
    tsne = TSNE(perplexity=perplexity, init="random", random_state=seed)
    return torch.from_numpy(tsne.fit_transform(codes.float().numpy(force=True)))


def draw_clusters(
    points: Tensor, labels: Tensor, centers: Tensor | None = None, cluster_names: Sequence[str] = ()
) -> Tensor:
    """Return a scatter plot (3, height, width) in [0, 1] of points (n, 2), colored by `labels` (n,).

    `centers` (clusters, 2) are drawn as stars. `cluster_names` add a legend. The axis limits depend on
    `points` only, so that plots of the same points with other centers can be frames of an animation.
    """
    # Not pyplot, which would keep a reference to the figure and may open a window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with use_fonts_for(cluster_names):
        coords, label_indices = points.numpy(force=True), labels.numpy(force=True)
        num_clusters = (
            len(centers) if centers is not None else max(int(label_indices.max()) + 1, len(cluster_names))
        )
        colors = pick_colors(num_clusters)
        figure = Figure(
            figsize=(FIGURE_INCHES + (1.4 if cluster_names else 0), FIGURE_INCHES), dpi=DPI, layout="constrained"
        )
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        point_size = float(np.clip(12000 / len(coords), 6, 40))
        axes.scatter(coords[:, 0], coords[:, 1], s=point_size, c=colors[label_indices], alpha=0.8, linewidths=0)
        if centers is not None:
            center_coords = centers.numpy(force=True)
            star_size = 420 if num_clusters <= 20 else 120
            axes.scatter(
                center_coords[:, 0],
                center_coords[:, 1],
                s=star_size,
                c=colors,
                marker="*",
                edgecolors="black",
                linewidths=1.2,
                zorder=3,
            )
        for name, color in zip(cluster_names, colors, strict=False):
            axes.scatter([], [], color=color, label=name)
        _set_axes_limits(axes, coords)
        if cluster_names:
            for text in figure.legend(loc="outside right center", frameon=False).get_texts():
                text.set_parse_math(False)  # a $ in a class name does not start a formula
        return _render(canvas)


def draw_lines(lines: Mapping[str, Mapping[int, float]], *, x_label: str, y_label: str) -> Tensor:
    """Return a plot (3, height, width) in [0, 1] of lines: name → {x: y}, both axes logarithmic.

    Each point is labeled with its y.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(FIGURE_INCHES, FIGURE_INCHES * 0.75), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
    for (name, line), color in zip(lines.items(), pick_colors(len(lines)), strict=True):
        axes.plot(list(line), list(line.values()), marker="o", color=color, label=name)
        for x, y in line.items():
            axes.annotate(f"{y:.3g}", (x, y), (4, 4), textcoords="offset points", fontsize=7, color=color)
    ticks = sorted({x for line in lines.values() for x in line})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _render(canvas)


def _render(canvas: Any) -> Tensor:
    """Return the pixels of a matplotlib canvas: (3, height, width) in [0, 1]."""
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (height, width, 3)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


def _set_axes_limits(axes: Any, coords: np.ndarray) -> None:
    low, high = coords.min(0), coords.max(0)
    half_extent = max(float((high - low).max()) / 2 * (1 + 2 * MARGIN_FRACTION), 1e-6)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - half_extent, middle[0] + half_extent)
    axes.set_ylim(middle[1] - half_extent, middle[1] + half_extent)
    axes.set_aspect("equal")
    axes.grid(color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def pick_colors(count: int) -> np.ndarray:
    """Return `count` distinct RGBA colors (count, 4) in [0, 1]."""
    from matplotlib import colormaps

    if count <= 10:
        return colormaps["tab10"](np.arange(count))
    if count <= 20:
        return colormaps["tab20"](np.arange(count))
    return colormaps["hsv"](np.linspace(0, 1, count, endpoint=False))
