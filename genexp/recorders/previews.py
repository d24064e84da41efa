"""Recorder of previews: numbered PNG files, and the GIF or MP4 file that imageio makes of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import final

from genexp.images.animation import MAX_FRAMES
from genexp.recorders.pil_images import (
    encode_png,
    format_position,
    read_image,
    render_picture,
    to_pil_image,
    write_animation,
)
from genexp.recorders.recorder import Recorder
from genexp.run_dir.files import create_dir, remove_file, sync_files, write_file
from genexp.run_dir.paths import PREVIEWS_DIR
from genexp.snapshot import RunInfo, RunOutcome, Snapshot
from genexp.technique import PictureLabels


@final
class PreviewRecorder(Recorder):
    """Recorder of `previews/NAME/STEP.png` and of `NAME.gif`, or `NAME.mp4`, for each preview.

    At most MAX_FRAMES previews are kept: those at multiples of a stride, and the newest. The stride is a function
    of the step, so a resumed run keeps the same ones. The animation is written at the end. Each PNG file has the
    labels of its rows and columns as text, for the page of the run.
    """

    def __init__(self, preview_every: int, video_format: str = "gif", frame_duration_ms: int = 200) -> None:
        """`preview_every` is the number of epochs between two previews, 0 if there are none."""
        self._preview_every, self._video_format = preview_every, video_format
        self._frame_duration_ms = frame_duration_ms
        self._unsynced_paths: list[Path] = []

    def open(self, run: RunInfo) -> None:
        """Remove the previews of steps after the checkpoint. A fresh run removes all, and their animations."""
        self._run, self._previews_dir = run, run.run_dir / PREVIEWS_DIR
        self._interval = run.steps_per_epoch * self._preview_every
        if not run.completed_steps:
            for name in self._list_names():
                shutil.rmtree(self._previews_dir / name)
                remove_file(self._get_animation_path(name))
        for name in self._list_names():
            for step, path in self._find_previews(name).items():
                if step > run.completed_steps:
                    remove_file(path)

    def record(self, snapshot: Snapshot) -> None:
        """Write the previews of a snapshot, and remove those that are no longer kept."""
        step = snapshot.clock.step
        if self._run.is_recorded(step):
            return
        for name, pixels in snapshot.preview_images.items():
            directory = self._previews_dir / name
            create_dir(directory)
            path = directory / f"{step:08d}.png"
            labels = self._run.picture_labels.get(name, PictureLabels())
            write_file(path, encode_png(to_pil_image(pixels), json.dumps(asdict(labels))))
            self._unsynced_paths.append(path)
            stride = compute_preview_stride(step, self._interval)
            for old_step, path in self._find_previews(name).items():
                if old_step % stride and old_step != step:
                    remove_file(path)

    def flush(self) -> None:
        """Flush the new previews to the disk: the run may resume from the next checkpoint."""
        sync_files(path for path in self._unsynced_paths if path.exists())
        self._unsynced_paths.clear()

    def close(self, outcome: RunOutcome) -> None:
        """Write the animations, also for an incomplete run."""
        for name in self._list_names():
            self._write_animation(name)

    def _list_names(self) -> list[str]:
        return sorted(path.name for path in self._previews_dir.glob("*") if path.is_dir())

    def _find_previews(self, name: str) -> dict[int, Path]:
        """Return step → PNG file, in order of the steps."""
        paths = [path for path in (self._previews_dir / name).glob("*.png") if path.stem.isdecimal()]
        return {int(path.stem): path for path in sorted(paths, key=lambda path: int(path.stem))}

    def _get_animation_path(self, name: str) -> Path:
        return self._run.run_dir / f"{name}.{self._video_format}"

    def _write_animation(self, name: str) -> None:
        paths = self._find_previews(name)
        if not paths:
            return
        frames = (
            render_picture(read_image(path), self._run, name, format_position(step, self._run))
            for step, path in paths.items()
        )
        write_animation(self._get_animation_path(name), frames, self._frame_duration_ms)


def compute_preview_stride(step: int, interval: int, max_previews: int | None = None) -> int:
    """Return the steps between two previews that are kept until `step`, for one every `interval` steps.

    It is `interval` times the smallest power of two with which at most `max_previews` are kept, by default
    MAX_FRAMES.
    """
    stride = interval
    while -(-step // stride) + 1 > (max_previews or MAX_FRAMES):
        stride *= 2
    return stride
