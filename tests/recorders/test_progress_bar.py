"""Progress bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from genexp.recorders.progress_bar import LiveProgressBar, ProgressState, format_sparkline


def test_progress_bar_shows_the_loss_on_a_narrow_terminal() -> None:
    (text, *_) = draw(80, "best mse 0.2423", [5.0, 4.0, 2.0])
    assert "best mse 0.2423  loss 0.2423" in text
    assert "█▆▁" in text
    assert "samples/s" not in text


@pytest.mark.parametrize("width", [80, 110, 200])
def test_line_fits_and_does_not_cut_the_best_score(width: int) -> None:
    (text, rest) = draw(width, "best frechet_mnist-v1 12.34", [3.0] * 100)
    assert len(text) <= width
    assert "best frechet_mnist-v1 12.34" in text
    assert rest == "", "the bar is removed at the end"


def draw(width: int, best_text: str, objective_values: list[float]) -> tuple[str, str]:
    """Return the line that a terminal shows, and what remains of it at the end, without control codes."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    console.encoding  # noqa: B018
    state = ProgressState(
        99, 2000, 1000, 1000, 123.4, 12_340.0, {"loss": 0.24231}, {}, best_text, objective_values
    )
    bar = LiveProgressBar(console, state)
    shown = file.getvalue()
    bar.stop()
    end = file.getvalue()[len(shown) :]
    assert "\x1b[2K" in end  # clears the line
    remaining = end.rpartition("\x1b[2K")[2]
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown).strip("\r\n"), remaining.strip()


def test_sparkline_shows_means_of_finite_values() -> None:
    assert format_sparkline([1.0]) == format_sparkline([float("nan"), 2.0]) == ""
    assert format_sparkline([0.0, float("inf"), 7.0]) == "▁█"
    assert format_sparkline([1.0, 1.0]) == "▁▁"
    assert format_sparkline(list(range(80))) == "▁▂▃▄▅▆▇█"
