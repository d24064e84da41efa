"""Recorder of TensorBoard event files."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import yaml
from crc32c import crc32c

from genexp.recorders.pil_images import encode_png, to_pil_image
from genexp.recorders.projector import write_projector
from genexp.recorders.recorder import Recorder
from genexp.recorders.step_rows import iter_step_rows
from genexp.run_dir.paths import FIGURES_DIR, TENSORBOARD_DIR
from genexp.run_dir.record import flatten_config
from genexp.snapshot import Curve, FinalArtifacts, RunInfo, RunOutcome, Snapshot

# Field numbers and wire types of event.proto and summary.proto.
_WALL_TIME_FIELD, _STEP_FIELD, _SUMMARY_FIELD = b"\x09", b"\x10", b"\x2a"
_VALUE_FIELD, _TAG_FIELD, _SIMPLE_VALUE_FIELD = b"\x0a", b"\x0a", b"\x15"


class EventFileWriter:
    """Writer of a new event file. A block of events is written at once, and then flushed."""

    def __init__(self, path: Path, first_step: int) -> None:
        # Slow to import, and only runs that write events need it.
        from tensorboardX.proto import event_pb2

        self._proto = event_pb2
        self._file = path.open("xb")
        self._last_wall_time = time.time()
        version = event_pb2.Event(wall_time=self._last_wall_time, file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # At this event, a running TensorBoard discards the steps that a killed run recorded after its checkpoint.
        restart = event_pb2.Event(wall_time=self._last_wall_time, step=first_step, session_log=start)
        self._write(event.SerializeToString() for event in (version, restart))

    def add_summaries(self, summaries: Iterable[Any], step: int) -> None:
        """Append an event for each summary (a `Summary` message)."""
        now = time.time()
        events = [self._proto.Event(wall_time=now, step=step, summary=summary) for summary in summaries]
        self._write(event.SerializeToString() for event in events)

    def add_curves(self, prefix: str, curves: Mapping[str, Curve]) -> None:
        """Append one event for each step. Wall times are interpolated between the last block and now."""
        if not curves:
            return
        values = {name: curve.values.tolist() for name, curve in curves.items()}
        step_rows = list(iter_step_rows(curves, values))
        begin, now = self._last_wall_time, time.time()
        interval = (now - begin) / len(step_rows)
        self._last_wall_time = now
        self._write(
            _pack_event(prefix, names, begin + interval * count, step, row)
            for count, (step, names, row) in enumerate(step_rows, start=1)
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, events: Iterable[bytes]) -> None:
        self._file.write(b"".join(map(encode_tfrecord, events)))
        self._file.flush()


def encode_tfrecord(record: bytes) -> bytes:
    """Return a TFRecord: length, masked CRC-32C of the length, record, masked CRC-32C of the record."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, _masked_crc32c(length), record, _masked_crc32c(record)))


def _masked_crc32c(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def _pack_event(
    prefix: str, names: tuple[str, ...], wall_time: float, step: int, values: tuple[float, ...]
) -> bytes:
    """Return a serialized Event with a Summary that has a Value(tag, simple_value) for each name.

    The message is packed by hand. The layout is cached, since most steps have the same metrics.
    """
    step_bytes = _encode_varint(step)
    layout, value_prefixes = _build_event_layout(prefix, names, len(step_bytes))
    fields: list[Any] = [_WALL_TIME_FIELD, wall_time, _STEP_FIELD, step_bytes]
    for key, value in zip(value_prefixes, values, strict=True):
        fields += key, value
    return layout.pack(*fields)


@lru_cache(maxsize=64)
def _build_event_layout(
    prefix: str, names: tuple[str, ...], step_length: int
) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """Return the struct layout of an event, and the constant bytes before each metric's value."""
    value_prefixes = []
    for name in names:
        tag = _encode_bytes_field(_TAG_FIELD, f"{prefix}/{name}".encode())
        value_prefixes.append(_VALUE_FIELD + _encode_varint(len(tag) + 1 + 4) + tag + _SIMPLE_VALUE_FIELD)
    length = sum(len(key) + 4 for key in value_prefixes)
    value_prefixes[0] = _SUMMARY_FIELD + _encode_varint(length) + value_prefixes[0]
    return struct.Struct(f"<cdc{step_length}s" + "".join(f"{len(key)}sf" for key in value_prefixes)), tuple(
        value_prefixes
    )


def _encode_bytes_field(key: bytes, content: bytes) -> bytes:
    return key + _encode_varint(len(content)) + content


def _encode_varint(number: int) -> bytes:
    """Return a number as a protocol buffer varint: seven bits a byte, lowest first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


@final
class TensorBoardRecorder(Recorder):
    """Recorder of `tensorboard/`: scalars, previews, configuration; at the end also GIFs and latent codes."""

    def open(self, run: RunInfo) -> None:
        """Create an event file. Each resumption adds a file, and readers read them in order of their names.

        A fresh run deletes the event files that are there, and writes its configuration.
        """
        self._run = run
        self._log_dir = run.run_dir / TENSORBOARD_DIR
        self._log_dir.mkdir(exist_ok=True)
        if not run.completed_steps:
            for stale in self.append_only_files():
                stale.unlink()
        num_existing = len(self.append_only_files())
        self._writer = EventFileWriter(
            self._log_dir / f"events.out.tfevents.{num_existing:06d}", run.completed_steps + 1
        )
        if not num_existing:
            self._writer.add_summaries(_build_config_summaries(run), step=0)

    def record(self, snapshot: Snapshot) -> None:
        """Append scalars and images, and flush them to the operating system."""
        step = snapshot.clock.step
        self._writer.add_curves("train", snapshot.train_curves)
        if not self._run.is_recorded(step):
            encoded_images = {
                f"preview/{name}": encode_png(to_pil_image(pixels))
                for name, pixels in snapshot.preview_images.items()
            }
            self._writer.add_summaries(
                [
                    *_build_scalar_summaries("test", snapshot.test_metrics),
                    *map(_build_image_summary, encoded_images.items()),
                ],
                step,
            )
        if snapshot.final_artifacts is not None:
            self._write_final_artifacts(snapshot.final_artifacts, step)

    def append_only_files(self) -> list[Path]:
        """Return the paths of the event files."""
        return sorted(self._log_dir.glob("events.out.tfevents.*"))

    def close(self, outcome: RunOutcome) -> None:
        """Append the GIFs of the run, and an end event if it finished. Close the file."""
        from tensorboardX.summary import hparams

        gifs = [*sorted(self._run.run_dir.glob("*.gif")), *sorted((self._run.run_dir / FIGURES_DIR).glob("*.gif"))]
        for path in gifs:
            self._writer.add_summaries(
                [_build_image_summary((f"animation/{path.stem}", path.read_bytes()))], outcome.step
            )
        if outcome.state == "finished":
            *_, session_end = hparams({}, {})
            self._writer.add_summaries([session_end], outcome.step)
        self._writer.close()

    def _write_final_artifacts(self, artifacts: FinalArtifacts, step: int) -> None:
        still_images = {name: pixels for name, pixels in artifacts.gallery.items() if pixels.ndim == 3}
        encoded_images = {
            f"gallery/{name}": encode_png(to_pil_image(pixels)) for name, pixels in still_images.items()
        }
        self._writer.add_summaries(map(_build_image_summary, encoded_images.items()), step)
        if artifacts.codes is not None:
            write_projector(self._log_dir, artifacts, self._run.class_names)


def _build_config_summaries(run: RunInfo) -> list[Any]:
    """Return the configuration as a text summary and as hyperparameters (HParams plugin).

    tensorboardX's own `add_hparams` would create a second run for these. Its summary of all hyperparameters
    and metrics is left out. TensorBoard would apply the first run's summary to all runs. Without it,
    TensorBoard collects them from each run.
    """
    from tensorboardX.summary import hparams, text

    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    values = {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in flatten_config(run.config)
    }
    _, session_start, _ = hparams(values, {})
    return [text("config", f"```yaml\n{config}```"), session_start]


def _build_scalar_summaries(prefix: str, metrics: Mapping[str, float]) -> list[Any]:
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=f"{prefix}/{name}", simple_value=value) for name, value in metrics.items()]
    return [Summary(value=values)] if values else []


def _build_image_summary(tagged_image: tuple[str, bytes]) -> Any:
    """Return an image summary of (tag, content of a PNG or GIF file). TensorBoard animates GIFs."""
    from tensorboardX.proto.summary_pb2 import Summary

    tag, data = tagged_image
    size = struct.unpack("<HH", data[6:10]) if data.startswith(b"GIF") else struct.unpack(">II", data[16:24])
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
