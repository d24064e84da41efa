"""A run as TensorBoard shows it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import yaml

from genexp.recorders.events import EventFileWriter
from genexp.recorders.images import encode_png, to_pil_image
from genexp.recorders.projector import write_projector
from genexp.recorders.recorder import Recorder
from genexp.snapshot import FinalArtifacts, RunInfo, RunOutcome, Snapshot

TENSORBOARD_DIR = "tensorboard"


@final
class TensorBoard(Recorder):
    """Writes `tensorboard/`: scalars, pictures, the settings, and in the end GIFs and latent codes."""

    def open(self, run: RunInfo) -> None:
        """Begin an event file. A resumed run has one more: readers take them in order of their names."""
        self._run = run
        self._log_dir = run.run_dir / TENSORBOARD_DIR
        self._log_dir.mkdir(exist_ok=True)
        if not run.start_step:
            for stale in self.append_only_files():
                stale.unlink()
        num_existing = len(self.append_only_files())
        self._file = EventFileWriter(self._log_dir / f"events.out.tfevents.{num_existing:06d}", run.start_step + 1)
        if not num_existing:
            self._file.add_summaries(_build_config_summaries(run), step=0)

    def record(self, snapshot: Snapshot) -> None:
        """Append scalars and pictures; they are with the operating system when this returns."""
        step = snapshot.clock.step
        self._file.add_curves("train", snapshot.train)
        if not self._run.has_recorded(step):
            encoded_images = {
                f"preview/{name}": encode_png(to_pil_image(pixels)) for name, pixels in snapshot.images.items()
            }
            self._file.add_summaries(
                [
                    *_build_scalar_summaries("test", snapshot.test),
                    *map(_build_image_summary, encoded_images.items()),
                ],
                step,
            )
        if snapshot.final_artifacts is not None:
            self._write_final_artifacts(snapshot.final_artifacts, step)

    def append_only_files(self) -> list[Path]:
        """Return the event files."""
        return sorted(self._log_dir.glob("events.out.tfevents.*"))

    def close(self, outcome: RunOutcome) -> None:
        """Append the GIFs of the run, and that it has ended."""
        from tensorboardX.summary import hparams

        gifs = [*sorted(self._run.run_dir.glob("*.gif")), *sorted(self._run.run_dir.glob("figures/*.gif"))]
        for path in gifs:
            self._file.add_summaries(
                [_build_image_summary((f"animation/{path.stem}", path.read_bytes()))], outcome.step
            )
        if outcome.state == "finished":
            *_, session_end = hparams({}, {})
            self._file.add_summaries([session_end], outcome.step)
        self._file.close()

    def _write_final_artifacts(self, artifacts: FinalArtifacts, step: int) -> None:
        still_images = {name: pixels for name, pixels in artifacts.gallery.items() if pixels.ndim == 3}
        encoded_images = {
            f"gallery/{name}": encode_png(to_pil_image(pixels)) for name, pixels in still_images.items()
        }
        self._file.add_summaries(map(_build_image_summary, encoded_images.items()), step)
        if artifacts.codes is not None:
            write_projector(self._log_dir, artifacts, self._run.class_names)


def _build_config_summaries(run: RunInfo) -> list[Any]:
    """Return the configuration to read, and as hyperparameters to compare runs by.

    tensorboardX's own `add_hparams` would open a second run for these. Its list of all hyperparameters and
    metrics is left out: TensorBoard takes the first run's for all, where it would find each run's by itself.
    """
    from tensorboardX.summary import hparams, text

    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    _, session_start, _ = hparams(dict(_flatten(run.config)), {})
    return [text("config", f"```yaml\n{config}```"), session_start]


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, (bool, int, float, str)) else str(value)


def _build_scalar_summaries(prefix: str, scores: Mapping[str, float]) -> list[Any]:
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=f"{prefix}/{name}", simple_value=value) for name, value in scores.items()]
    return [Summary(value=values)] if values else []


def _build_image_summary(tagged_image: tuple[str, bytes]) -> Any:
    """Return (tag, the bytes of a PNG or GIF) as a summary; TensorBoard plays GIFs."""
    from tensorboardX.proto.summary_pb2 import Summary

    tag, data = tagged_image
    size = struct.unpack("<HH", data[6:10]) if data.startswith(b"GIF") else struct.unpack(">II", data[16:24])
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
