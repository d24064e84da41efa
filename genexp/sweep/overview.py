"""How a sweep goes, on the terminal: read from the jobs' folders, so that it does not matter where they run."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from genexp.paths import shown_path
from genexp.sweep.ledger import Entry, Ledger
from genexp.sweep.picture import Picture, in_words
from genexp.sweep.standing import Standing, read_standing

REFRESH_SECONDS = 0.5
LISTED = 8  # running jobs, and failed ones, at most
BAR_WIDTH = 40


class Overview:
    """Shows the jobs of a sweep while the block runs: redrawn on a terminal, elsewhere a line a job that ends."""

    def __init__(self, ledger: Ledger, begun: float) -> None:
        self._ledger, self._begun = ledger, begun
        console = Console()  # not rich's shared one, which the jobs of this process keep silent
        self._view: _Moving | _Lines = _Moving(console) if console.is_terminal else _Lines(console, ledger.folder)
        self._settled: dict[Entry, Standing] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="overview", daemon=True)

    def __enter__(self) -> None:
        self._start = time.monotonic()
        self._parts_before = sum(standing.part for standing in self._standings().values())
        self._view.begin(self._picture())
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._view.show(self._picture())
        self._view.end()

    def _follow(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            self._view.show(self._picture())

    def _picture(self) -> Picture:
        standings = self._standings()
        parts = sum(standing.part for standing in standings.values())
        ahead = sum(
            1 - standing.part for standing in standings.values() if standing.state in ("waiting", "running")
        )
        gained = parts - self._parts_before
        elapsed = time.monotonic() - self._start
        return Picture(standings, elapsed * ahead / gained if gained > 0 and ahead else None)

    def _standings(self) -> dict[Entry, Standing]:
        standings = {}
        for entry in self._ledger.entries:
            standing = self._settled.get(entry) or read_standing(self._ledger.run_folder(entry), self._begun)
            if standing.state == "finished":
                self._settled[entry] = standing  # nothing more will come: hundreds need not be read each time
            standings[entry] = standing
        return standings


class _Moving:
    """A few lines on a terminal that are drawn over."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, picture: Picture) -> None:
        self._live.start()
        self.show(picture)

    def show(self, picture: Picture) -> None:
        running, failed = picture.having("running"), picture.having("failed")
        lines = ["  ".join(part for part in (picture.counts, picture.left) if part), *picture.best]
        lines += _some(running) + _some(failed)
        bar = ProgressBar(total=1.0, completed=picture.part, width=BAR_WIDTH)
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        self._live.update(Group(bar, *texts), refresh=True)

    def end(self) -> None:
        self._live.stop()


def _some(standings: dict[Entry, Standing]) -> list[str]:
    lines = [f"  {in_words(entry, standing)}" for entry, standing in standings.items()]
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"  … and {len(lines) - LISTED} more"]


class _Lines:
    """A line a job that has ended."""

    def __init__(self, console: Console, folder: Path) -> None:
        self._console, self._folder = console, folder
        self._said: set[Entry] = set()

    def begin(self, picture: Picture) -> None:
        self._said |= picture.having("finished").keys()
        self._print(f"{picture.counts} → {shown_path(self._folder)}")

    def show(self, picture: Picture) -> None:
        for entry, standing in picture.standings.items():
            if standing.state in ("finished", "stopped", "failed") and entry not in self._said:
                self._said.add(entry)
                self._print("  ".join(part for part in (in_words(entry, standing), picture.left) if part))

    def end(self) -> None:
        """Nothing is left to say."""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
