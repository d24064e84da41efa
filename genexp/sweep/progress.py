"""How a sweep goes, on the terminal: read from the jobs' folders, so that it does not matter where they run."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from genexp.run_dir.paths import format_path
from genexp.run_dir.status import RunStatus, read_status
from genexp.sweep.manifest import Entry, Ledger
from genexp.sweep.picture import Picture, in_words

REFRESH_SECONDS = 0.5
LISTED = 8  # running jobs, and failed ones, at most
BAR_WIDTH = 40


class Overview:
    """Shows the jobs of a sweep while a block runs: redrawn on a terminal, elsewhere a line a job that ends.

    A sweep in several batches enters it for each; `expected` then says how many jobs there will be in all.
    One that ends jobs early says with `expected` how many whole jobs their parts will come to.
    """

    expected: float | None = None

    def __init__(self, ledger: Ledger, begun: float) -> None:
        self._ledger, self._begun = ledger, begun
        console = Console()  # not rich's shared one, which the jobs of this process keep silent
        self._view: _Moving | _Lines = _Moving(console) if console.is_terminal else _Lines(console, ledger.folder)
        self._settled: dict[Entry, RunStatus] = {}
        self._start = time.monotonic()
        self._parts_before: float | None = None

    def __enter__(self) -> None:
        if self._parts_before is None:
            self._parts_before = sum(standing.fraction_done for standing in self._standings().values())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="overview", daemon=True)
        self._view.begin(self._picture())
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._view.show(self._picture())
        self._view.end()

    def say(self, text: str) -> None:
        """Print a line above all others."""
        self._view.say(text)

    def _follow(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            self._view.show(self._picture())

    def _picture(self) -> Picture:
        standings = self._standings()
        picture = Picture(standings, self.expected)
        gained = sum(standing.fraction_done for standing in standings.values()) - (self._parts_before or 0.0)
        if gained <= 0:
            return picture
        elapsed = time.monotonic() - self._start
        return replace(picture, seconds_left=elapsed * picture.ahead / gained)

    def _standings(self) -> dict[Entry, RunStatus]:
        standings = {}
        for entry in self._ledger.entries:
            since = 0.0 if entry.number in self._ledger.halted else self._begun
            standing = self._settled.get(entry) or read_status(self._ledger.run_folder(entry), since)
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
        bar = ProgressBar(total=picture.total, completed=picture.total - picture.ahead, width=BAR_WIDTH)
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        self._live.update(Group(Padding(bar, 0), *texts), refresh=True)  # padded, it is a line by itself

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        self._live.stop()


def _some(standings: dict[Entry, RunStatus]) -> list[str]:
    lines = [f"  {in_words(entry, standing)}" for entry, standing in standings.items()]
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"  … and {len(lines) - LISTED} more"]


class _Lines:
    """A line a job that has ended."""

    def __init__(self, console: Console, folder: Path) -> None:
        self._console, self._folder = console, folder
        self._said: set[Entry] = set()
        self._begun = False

    def begin(self, picture: Picture) -> None:
        if not self._begun:
            self._said |= picture.having("finished").keys()
            self.say(f"{picture.counts} → {format_path(self._folder)}")
        self._begun = True

    def show(self, picture: Picture) -> None:
        for entry, standing in picture.standings.items():
            if standing.state in ("finished", "failed") and entry not in self._said:
                self._said.add(entry)
                self.say("  ".join(part for part in (in_words(entry, standing), picture.left) if part))

    def end(self) -> None:
        """Nothing is left to say."""

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
