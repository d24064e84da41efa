"""Page of a run that is written while the run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from genexp.recorders.report import ReportRecorder
from genexp.snapshot import Snapshot
from tests.support.snapshots import FINISHED_OUTCOME, make_clock, make_run_info


class FakeClock:
    """Clock that a test moves, and that a page moves by `seconds_per_page`."""

    def __init__(self, seconds_per_page: float) -> None:
        self.now, self.seconds_per_page, self.states = 0.0, seconds_per_page, list[tuple[float, str]]()

    def read(self) -> float:
        return self.now

    def write_page(self, run_dir: Path, state: str) -> None:
        self.states.append((self.now, state))
        self.now += self.seconds_per_page


def record_seconds(clock: FakeClock, tmp_path: Path, seconds: int, evaluations: set[int]) -> list[float]:
    """Record a snapshot each second, and return the times of the pages."""
    run = make_run_info(tmp_path)
    recorder = ReportRecorder(clock.write_page, interval_seconds=30, read_time=clock.read)
    recorder.open(run)
    for second in range(1, seconds):
        clock.now = max(clock.now, second)
        recorder.record(Snapshot(make_clock(1, run), test_metrics={"mse": 1.0} if second in evaluations else {}))
    recorder.close(FINISHED_OUTCOME)
    assert [state for _, state in clock.states] == ["running"] * (len(clock.states) - 1) + ["finished"]
    return [round(time) for time, _ in clock.states]


def test_page_is_written_at_evaluations_and_every_30_seconds(tmp_path: Path) -> None:
    assert record_seconds(FakeClock(0), tmp_path, 80, {1, 5, 6, 50}) == [5, 6, 36, 50, 79]


def test_pages_take_at_most_a_fiftieth_of_the_time(tmp_path: Path) -> None:
    times = record_seconds(FakeClock(0.2), tmp_path, 100, set(range(100)))
    assert len(times) <= 10


def test_error_while_the_run_goes_on_does_not_end_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(run_dir: Path, state: str) -> None:
        if state == "running":
            raise OSError(28, "No space left on device")

    run, times = make_run_info(tmp_path), iter(range(0, 1000, 40))
    recorder = ReportRecorder(fail, read_time=lambda: next(times))
    recorder.open(run)
    recorder.record(Snapshot(make_clock(1, run)))
    recorder.close(FINISHED_OUTCOME)
    assert "No space left" in caplog.text
