"""Recorder of the figures of a run: curves, previews, gallery and latent codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from torch import Tensor

from genexp.recorders.curves import write_curves_figure
from genexp.recorders.latent_plots import write_latents_figure, write_latents_html
from genexp.recorders.pil_images import encode_png, format_position, render_picture, to_pil_image, write_animation
from genexp.recorders.recorder import Recorder
from genexp.run_dir.files import create_dir, sync_files, write_file
from genexp.run_dir.metrics import read_metrics
from genexp.run_dir.paths import CURVES_FIGURE, FIGURES_DIR, LATENTS_FIGURE, LATENTS_PAGE, find_assets_dir
from genexp.snapshot import FinalArtifacts, RunInfo, RunOutcome, Snapshot


@final
class FigureRecorder(Recorder):
    """Recorder of `figures/`.

    The newest previews are written at most every `interval_seconds` seconds, all other figures when the run ends.
    Frames of animations are shown for `frame_duration_ms` milliseconds. The curves are read from `metrics.jsonl`:
    `MetricsRecorder` must come first.
    """

    def __init__(
        self,
        video_format: str = "gif",
        *,
        interval_seconds: float = 2.0,
        frame_duration_ms: int = 200,
        read_time: Callable[[], float] = time.monotonic,
    ) -> None:
        self._video_format = video_format
        self._interval_seconds, self._frame_duration_ms = interval_seconds, frame_duration_ms
        self._read_time = read_time

    def open(self, run: RunInfo) -> None:
        """Create the folder."""
        self._run = run
        self._figures_dir = run.run_dir / FIGURES_DIR
        create_dir(self._figures_dir)
        self._title = f"{run.model_name} on {run.dataset_name}"
        self._pending_images: dict[str, Tensor] = {}
        self._unsynced_paths: list[Path] = []
        self._last_write_time = 0.0

    def record(self, snapshot: Snapshot) -> None:
        """Write the previews if they are due. Write the gallery and latent plots at the end of the run."""
        self._pending_images |= snapshot.preview_images
        self._position = format_position(snapshot.clock.step, self._run)
        if (
            snapshot.final_artifacts is not None
            or self._read_time() - self._last_write_time >= self._interval_seconds
        ):
            self._write_previews()
        if snapshot.final_artifacts is not None:
            self._write_images(snapshot.final_artifacts.gallery)
            self._write_latent_plots(snapshot.final_artifacts)

    def flush(self) -> None:
        """Flush the new images to the disk: a run that resumes from the next checkpoint does not write them."""
        sync_files(dict.fromkeys(self._unsynced_paths))
        self._unsynced_paths.clear()

    def close(self, outcome: RunOutcome) -> None:
        """Write the newest previews and the curves, also for an incomplete run."""
        self._write_previews()
        metrics = read_metrics(self._run.run_dir)
        if metrics:
            write_curves_figure(
                self._figures_dir / CURVES_FIGURE,
                metrics,
                self._title,
                self._run.steps_per_epoch,
                objective=self._run.objective,
                direction=self._run.direction,
            )

    def _write_previews(self) -> None:
        if not self._pending_images:
            return
        self._write_images(self._pending_images)
        self._pending_images.clear()
        self._last_write_time = self._read_time()

    def _write_images(self, images: Mapping[str, Tensor]) -> None:
        for name, pixels in images.items():
            path = self._figures_dir / f"{name}.{self._video_format if pixels.ndim == 4 else 'png'}"
            if pixels.ndim == 4:
                frames = (
                    render_picture(frame, self._run, name, f"frame {index} of {len(pixels)}")
                    for index, frame in enumerate(map(to_pil_image, pixels), start=1)
                )
                write_animation(path, frames, self._frame_duration_ms)
            else:
                write_file(path, encode_png(render_picture(to_pil_image(pixels), self._run, name, self._position)))
            self._unsynced_paths.append(path)

    def _write_latent_plots(self, artifacts: FinalArtifacts) -> None:
        if artifacts.codes is None or artifacts.codes.shape[1] not in (2, 3):
            return
        title = f"{self._title}: latent codes of held-out samples"
        write_latents_figure(self._figures_dir / LATENTS_FIGURE, artifacts, self._run.class_names, title)
        page = self._figures_dir / LATENTS_PAGE
        write_latents_html(page, artifacts, self._run.class_names, title, find_assets_dir(self._run.run_dir))
