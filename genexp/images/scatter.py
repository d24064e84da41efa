"""Points in the plane as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIDE = 6.0  # inches
DOTS = 100  # per inch
MARGIN = 0.08  # of the points' extent on each side


def flattened(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return points (n, features) and others (m, features) in the plane of the points' two widest directions.

    Two features stay as they are, and to a single one a zero is added.
    """
    features = points.shape[1]
    if features <= 2:
        pad = (0, 2 - features)
        return torch.nn.functional.pad(points, pad), torch.nn.functional.pad(others, pad)
    mean = points.mean(0)
    centred = points - mean
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)  # (features, 2)
    # An axis is found up to its sign: fixed, so that pictures of the same points agree.
    strongest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * strongest.sign()
    return centred @ axes, (others - mean) @ axes


def embedded(codes: Tensor) -> Tensor:
    """Return codes (n, features), at least three, in the plane by t-SNE (van der Maaten & Hinton 2008): (n, 2).

    Seconds for a thousand of them. Random through torch's generator.
    """
    from sklearn.manifold import TSNE

    seed = int(torch.randint(2**31, ()))
    neighbours = min(30.0, (len(codes) - 1) / 3)
    # Not PCA as the start: codes that do not differ have no direction of greatest variance.
    tsne = TSNE(perplexity=neighbours, init="random", random_state=seed)
    return torch.from_numpy(tsne.fit_transform(codes.float().numpy(force=True)))


def draw_clusters(
    points: Tensor, groups: Tensor, centres: Tensor | None = None, names: Sequence[str] = ()
) -> Tensor:
    """Return points (n, 2) coloured by group (n,) as a picture (3, height, width) in [0, 1].

    `centres` (groups, 2) are drawn as stars; `names` of the groups make a legend. The frame depends on the
    points alone, so that pictures of the same points make an animation.
    """
    # The object interface: pyplot would keep the figure, and may open a window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places, numbers = points.numpy(force=True), groups.numpy(force=True)
    count = len(centres) if centres is not None else max(int(numbers.max()) + 1, len(names))
    colours = _colours(count)
    figure = Figure(figsize=(SIDE + (1.4 if names else 0), SIDE), dpi=DOTS, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    size = float(np.clip(12000 / len(places), 6, 40))
    axes.scatter(places[:, 0], places[:, 1], s=size, c=colours[numbers], alpha=0.8, linewidths=0)
    if centres is not None:
        shown = centres.numpy(force=True)
        star = 420 if count <= 20 else 120
        axes.scatter(
            shown[:, 0], shown[:, 1], s=star, c=colours, marker="*", edgecolors="black", linewidths=1.2, zorder=3
        )
    for name, colour in zip(names, colours, strict=False):
        axes.scatter([], [], color=colour, label=name)
    _frame(axes, places)
    if names:
        figure.legend(loc="outside right center", frameon=False)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (height, width, 3)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


def _frame(axes: Any, places: np.ndarray) -> None:
    low, high = places.min(0), places.max(0)
    half = max(float((high - low).max()) / 2 * (1 + 2 * MARGIN), 1e-6)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_aspect("equal")
    axes.grid(color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(count: int) -> np.ndarray:
    """Return `count` colours (count, 4) that are told apart as easily as so many can be."""
    from matplotlib import colormaps

    if count <= 10:
        return colormaps["tab10"](np.arange(count))
    if count <= 20:
        return colormaps["tab20"](np.arange(count))
    return colormaps["hsv"](np.linspace(0, 1, count, endpoint=False))
