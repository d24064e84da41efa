"""Progress bar on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from genexp.recorders.progress_bar import LiveProgressBar, ProgressState


def test_progress_bar_shows_the_loss_on_a_narrow_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    progress = ProgressState(99, 2000, 1, 100, 123.4, 12_340.0, {"loss": 0.24231}, {}, "best mse 0.2423")
    LiveProgressBar(console, progress).stop()
    assert isinstance(console.file, io.StringIO)
    assert "loss 0.2423" in console.file.getvalue()
