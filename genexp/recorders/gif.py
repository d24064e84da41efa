"""What a technique shows, over the whole run."""

from __future__ import annotations

from pathlib import Path
from typing import final

from genexp.recorders.growing_gif import append_frame, restore_trailer
from genexp.recorders.recorder import Recorder
from genexp.snapshot import RunInfo, Snapshot


@final
class PreviewGifs(Recorder):
    """Lets each preview grow into `<name>.gif`, whole after each frame, each shown for `duration` ms."""

    def __init__(self, duration: int = 200) -> None:
        self._duration = duration

    def open(self, run: RunInfo) -> None:
        """Get ready to go on with the GIFs of a resumed run."""
        self._run = run
        self._paths = set(run.run_dir.glob("*.gif")) if run.start_step else set()
        for path in self._paths:
            restore_trailer(path)

    def record(self, snapshot: Snapshot) -> None:
        """Append a frame to the GIF of each picture."""
        if self._run.has_recorded(snapshot.clock.step):
            return
        for name, pixels in snapshot.images.items():
            path = self._run.run_dir / f"{name}.gif"
            if path not in self._paths:
                path.unlink(missing_ok=True)
                self._paths.add(path)
            append_frame(path, pixels, self._duration)

    def append_only_files(self) -> list[Path]:
        """Return the GIFs."""
        return sorted(self._paths)
