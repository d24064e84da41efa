"""Recorder of TensorBoard event files."""

from __future__ import annotations

import io
import math
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import yaml
from torch import Tensor

from genexp.errors import CheckpointError
from genexp.images.scatter import pick_colors
from genexp.recorders.latent_plots import get_class_name
from genexp.recorders.pil_images import encode_png, to_pil_image
from genexp.recorders.previews import compute_preview_stride
from genexp.recorders.recorder import Recorder
from genexp.run_dir.config_file import read_yaml_file
from genexp.run_dir.files import read_file, write_file
from genexp.run_dir.paths import (
    EVENT_FILE_PREFIX,
    FIGURES_DIR,
    HYDRA_DIR,
    PROJECTOR_DIR,
    PROJECTOR_FILE,
    find_events_dir,
)
from genexp.run_dir.record import flatten_config
from genexp.snapshot import Curve, FinalArtifacts, RunInfo, RunOutcome, Snapshot, iter_step_rows
from genexp.technique import Clock, PictureLabels

GIF_HEADER_BYTES = 13
MAX_PROJECTOR_SAMPLES = 2000
MAX_PREVIEWS = 24  # of each name; TensorBoard shows ten, or the number in its option --samples_per_plugin
THUMBNAIL_FRAME_RATIO = 12  # side of a thumbnail, divided by the width of its frame
SPRITE_GRAYS = 24  # levels
MAX_THUMBNAIL_PIXELS = 48  # side; larger images are reduced. A sprite has 8192 × 8192 pixels at most
# TensorBoard sorts the groups of its pages by name.
LOSS_GROUP, METRIC_GROUP, PREVIEW_GROUP, RESULT_GROUP = "losses", "metrics", "previews", "results"
CLASS_GROUP, WEIGHT_GROUP = "samples by class", "weights"
HISTOGRAM_BINS = 50
SHOWN_SETTINGS = {"model.name", "seed"}  # hyperparameters of each run; others if they are changed
IGNORED_SETTINGS = {"resume", "notes", "tags", "recorders"}
FLUSH_SECONDS = 1.0  # tensorboardX waits for the disk at each flush


class EventWriter:
    """Writer of a new event file: protocol buffers and records of tensorboardX.

    Events reach the file at most every FLUSH_SECONDS seconds, and at `flush`. A step with three metrics takes
    13 µs of processor time. tensorboardX's `SummaryWriter` takes 400 µs, because it sends an event for each metric
    through a queue.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        # Slow to import, and only runs that write events need it.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event_pb2 = event_pb2
        self._record_writer = RecordWriter(str(path))
        self._last_wall_time = time.time()
        version = event_pb2.Event(wall_time=self._last_wall_time, file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # At this event, a running TensorBoard discards the steps that a killed run recorded after its checkpoint.
        restart = event_pb2.Event(wall_time=self._last_wall_time, step=first_step, session_log=start)
        for event in (version, restart):
            self._write(event)
        self.flush()

    def add_summaries(self, summaries: Iterable[Any], step: int) -> None:
        """Append an event for each summary (a `Summary` message)."""
        now = time.time()
        for summary in summaries:
            self._write(self._event_pb2.Event(wall_time=now, step=step, summary=summary))
        self._flush_if_due()

    def add_curves(self, curves: Mapping[str, Curve]) -> None:
        """Append an event for each step of training metrics. Wall times are interpolated since the last call."""
        if not curves:
            return
        values = {name: curve.values.tolist() for name, curve in curves.items()}
        step_rows = list(iter_step_rows(curves, values))
        begin, now = self._last_wall_time, time.time()
        interval = (now - begin) / len(step_rows)
        self._last_wall_time = now
        # Filling a message takes half the time of creating one, and most steps have the same metrics.
        events: dict[tuple[str, ...], Any] = {}
        for count, (step, names, row) in enumerate(step_rows, start=1):
            if names not in events:
                summary = _build_scalar_summary("train", dict.fromkeys(names, 0.0))
                events[names] = self._event_pb2.Event(summary=summary)
            event = events[names]
            event.step, event.wall_time = step, begin + interval * count
            for metric, value in zip(event.summary.value, row, strict=True):
                metric.simple_value = value
            self._write(event)
        self._flush_if_due()

    def flush(self) -> None:
        """Write buffered events to the disk."""
        self._record_writer.flush()
        self._last_flush_time = time.monotonic()

    def close(self) -> None:
        """Write buffered events and close the file."""
        self.flush()
        self._record_writer.close()

    def _write(self, event: Any) -> None:
        self._record_writer.write(event.SerializeToString())

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._last_flush_time >= FLUSH_SECONDS:
            self.flush()


@final
class TensorBoardRecorder(Recorder):
    """Recorder of event files: scalars, previews, configuration; at the end also GIFs and latent codes.

    Events are only appended. The previews of each name are evenly spaced, at most MAX_PREVIEWS, and the last one.
    Event files are in the run directory itself, since TensorBoard names a run by the directory of its events.
    """

    def __init__(self, preview_every: int, histograms: bool = False) -> None:
        """`preview_every` is the number of epochs between two previews, 0 if there are none.

        `histograms` adds the distributions of weights and gradients at each evaluation.
        """
        self._preview_every, self._histograms = preview_every, histograms

    def open(self, run: RunInfo) -> None:
        """Create an event file. Each resumption adds a file, and readers read them in order of their names.

        A fresh run deletes the event files that are there, and writes its configuration.
        """
        self._run = run
        self._log_dir = find_events_dir(run.run_dir)
        if not run.completed_steps:
            for stale in self._list_event_files():
                stale.unlink()
        existing_numbers = [int(path.suffix[1:]) for path in self._list_event_files()]
        # A running TensorBoard reads files in order of their names, and each name once.
        number = max([time.time_ns(), *(number + 1 for number in existing_numbers)])
        self._writer = EventWriter(self._log_dir / f"{EVENT_FILE_PREFIX}{number:019d}", run.completed_steps + 1)
        if not existing_numbers:
            self._writer.add_summaries(_build_config_summaries(run), step=0)

    def record(self, snapshot: Snapshot) -> None:
        """Append scalars and images."""
        step = snapshot.clock.step
        self._writer.add_curves(snapshot.train_curves)
        if not self._run.is_recorded(step):
            if snapshot.test_metrics:
                self._writer.add_summaries([_build_scalar_summary("test", snapshot.test_metrics)], step)
            if self._histograms:
                self._writer.add_summaries(_iter_histograms(snapshot), step)
            if snapshot.preview_images and self._is_preview_due(snapshot.clock):
                self._add_images(PREVIEW_GROUP, snapshot.preview_images, step)
        if snapshot.final_artifacts is not None:
            # Once: not by a run that will be resumed, nor by one that was killed after this step.
            if snapshot.is_complete and not self._run.is_recorded(step):
                gallery = snapshot.final_artifacts.gallery
                self._add_images(
                    RESULT_GROUP, {name: pixels for name, pixels in gallery.items() if pixels.ndim == 3}, step
                )
            if snapshot.final_artifacts.codes is not None:
                write_projector(self._log_dir, snapshot.final_artifacts, self._run.class_names)

    def flush(self) -> None:
        """Write buffered events to the disk."""
        self._writer.flush()

    def close(self, outcome: RunOutcome) -> None:
        """Append the GIFs of the gallery, and an end event if the run finished. Close the file.

        The previews of all steps are there already.
        """
        from tensorboardX.summary import hparams

        for path in sorted((self._run.run_dir / FIGURES_DIR).glob("*.gif")):
            data = read_file(path)
            if data.startswith(b"GIF8") and len(data) >= GIF_HEADER_BYTES:  # others can come from elsewhere
                self._writer.add_summaries(
                    [_build_image_summary((f"{RESULT_GROUP}/{path.stem}", data))], outcome.step
                )
        if outcome.state == "finished":
            *_, session_end = hparams({}, {})
            self._writer.add_summaries([session_end], outcome.step)
        self._writer.close()

    def _list_event_files(self) -> list[Path]:
        return sorted(self._log_dir.glob(f"{EVENT_FILE_PREFIX}*"))

    def _is_preview_due(self, clock: Clock) -> bool:
        interval = self._run.steps_per_epoch * self._preview_every
        stride = compute_preview_stride(self._run.total_steps, interval, MAX_PREVIEWS)
        return clock.is_last_step or clock.step % stride == 0

    def _add_images(self, group: str, images: Mapping[str, Tensor], step: int) -> None:
        """Append images, uint8 (channels, height, width). A grid of classes is also divided into one per class."""
        tagged_images = {f"{group}/{name}": pixels for name, pixels in images.items()}
        for name, pixels in images.items():
            labels = self._run.picture_labels.get(name, PictureLabels())
            tagged_images |= {
                f"{CLASS_GROUP}/{name} {label}" if len(images) > 1 else f"{CLASS_GROUP}/{label}": part
                for label, part in _iter_class_parts(pixels, labels, self._run.class_names)
            }
        self._writer.add_summaries(
            (_build_image_summary((tag, encode_png(to_pil_image(part)))) for tag, part in tagged_images.items()),
            step,
        )


def _build_config_summaries(run: RunInfo) -> list[Any]:
    """Return the configuration as a text summary and as hyperparameters (HParams plugin).

    tensorboardX's own `add_hparams` would create a second run for these. Its summary of all hyperparameters
    and metrics is omitted. TensorBoard would apply the first run's summary to all runs. Without it,
    TensorBoard collects them from each run. `genexp-compare --tensorboard` writes a summary for all its runs.
    """
    from tensorboardX.summary import hparams, text

    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
    _, session_start, _ = hparams(_select_changed_settings(run), {})
    return [text("config", f"```yaml\n{config}```"), session_start]


def write_hparams_columns(path: Path, examples: Mapping[str, Any], metric_tags: Sequence[str]) -> None:
    """Write an event file with the columns of the HParams page: settings and metrics.

    `examples` maps each setting to a value, whose type is that of the column. Without the file, TensorBoard shows
    all hyperparameters and all metrics of all runs.
    """
    from tensorboardX.summary import hparams

    columns, *_ = hparams(_simplify_values(examples), dict.fromkeys(metric_tags, 0.0))
    path.unlink(missing_ok=True)
    writer = EventWriter(path, first_step=1)
    writer.add_summaries([columns], step=0)
    writer.close()


def _simplify_values(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return values that tensorboardX accepts: others, and integers beyond 64 bits, are texts."""
    return {key: value if _is_accepted(value) else str(value) for key, value in settings.items()}


def _is_accepted(value: Any) -> bool:
    return isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**63)


def _select_changed_settings(run: RunInfo) -> dict[str, bool | int | float | str]:
    """Return dotted key → value of the model, the seed, and what the command line names."""
    try:
        overrides = read_yaml_file(run.run_dir / HYDRA_DIR / "overrides.yaml")
    except CheckpointError:  # not started by Hydra
        overrides = []
    words = [str(word).lstrip("+~") for word in overrides] if isinstance(overrides, list) else []
    names = {word.partition("=")[0].partition("@")[0] for word in words}
    names = {name for name in names if name.partition(".")[0] not in IGNORED_SETTINGS}
    presets = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    settings = {
        key: value
        for key, value in flatten_config(run.config)
        if key in SHOWN_SETTINGS
        or any(f"{key}.".startswith(f"{name}.") for name in names if "." in name)
        or key.removesuffix(".name") in names
    }
    return _simplify_values(settings | dict(zip(["experiment"], presets, strict=False)))


def get_scalar_tag(name: str, split: str) -> str:
    """Return the tag GROUP/NAME/SPLIT of a metric. TensorBoard sorts tags, so that losses come first."""
    group = LOSS_GROUP if name == "loss" or name.endswith("_loss") else METRIC_GROUP
    return f"{group}/{name}/{split}"


def _build_scalar_summary(split: str, metrics: Mapping[str, float]) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary(
        value=[
            Summary.Value(tag=get_scalar_tag(name, split), simple_value=value) for name, value in metrics.items()
        ]
    )


def _iter_histograms(snapshot: Snapshot) -> Iterator[Any]:
    """Yield a histogram of the finite values of each weight and each gradient of a snapshot.

    Buffers are omitted, unless the technique has no gradients. The state of k-means consists of buffers.
    """
    from tensorboardX.summary import histogram

    gradients, state = snapshot.gradients, snapshot.technique_state or {}
    weights = {name: weight for name, weight in state.items() if not gradients or name in gradients}
    for suffix, tensors in (("", weights), ("/gradient", gradients)):
        for name, tensor in tensors.items():
            values = tensor.detach().float().flatten().cpu().numpy() if tensor.is_floating_point() else np.empty(0)
            values = values[np.isfinite(values)]
            if values.size > 1:
                yield histogram(f"{WEIGHT_GROUP}/{name}{suffix}", values, HISTOGRAM_BINS)


def _iter_class_parts(
    pixels: Tensor, labels: PictureLabels, class_names: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (class, part of a grid) if the grid has a class in each row or in each column."""
    for dim, names in ((1, labels.rows), (2, labels.columns)):
        if names and set(names) <= set(class_names):
            size = pixels.shape[dim] / len(names)
            for index, name in enumerate(names):
                yield (
                    name,
                    pixels.narrow(dim, round(index * size), round((index + 1) * size) - round(index * size)),
                )


def _build_image_summary(tagged_image: tuple[str, bytes]) -> Any:
    """Return an image summary of (tag, content of a PNG or GIF file). TensorBoard animates GIFs."""
    from tensorboardX.proto.summary_pb2 import Summary

    tag, data = tagged_image
    size = struct.unpack("<HH", data[6:10]) if data.startswith(b"GIF") else struct.unpack(">II", data[16:24])
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def write_projector(log_dir: Path, artifacts: FinalArtifacts, class_names: Sequence[str]) -> None:
    """Write codes, class names and thumbnails of up to MAX_PROJECTOR_SAMPLES samples into `log_dir`/projector.

    A class name is one line: spaces replace tabs and line breaks.
    """
    assert artifacts.codes is not None
    projector_dir = log_dir / PROJECTOR_DIR
    projector_dir.mkdir(exist_ok=True)
    codes = io.BytesIO()
    np.savetxt(codes, artifacts.codes[:MAX_PROJECTOR_SAMPLES].numpy(), fmt="%.4g", delimiter="\t")
    write_file(projector_dir / "codes.tsv", codes.getvalue())
    projector_config = (
        f'embeddings {{\n  tensor_name: "latent codes"\n  tensor_path: "{PROJECTOR_DIR}/codes.tsv"\n'
    )
    if artifacts.labels is not None:
        names = [get_class_name(label, class_names) for label in artifacts.labels[:MAX_PROJECTOR_SAMPLES].tolist()]
        write_file(projector_dir / "classes.tsv", "".join(f"{' '.join(name.split())}\n" for name in names))
        projector_config += f'  metadata_path: "{PROJECTOR_DIR}/classes.tsv"\n'
    if artifacts.images is not None:
        side = min(MAX_THUMBNAIL_PIXELS, max(artifacts.images.shape[2:]))
        labels = None if artifacts.labels is None else artifacts.labels.tolist()
        _write_sprite(projector_dir / "thumbnails.png", artifacts.images[:MAX_PROJECTOR_SAMPLES], side, labels)
        projector_config += f'  sprite {{\n    image_path: "{PROJECTOR_DIR}/thumbnails.png"\n'
        projector_config += 2 * f"    single_image_dim: {side}\n" + "  }\n"
    write_file(log_dir / PROJECTOR_FILE, projector_config + "}\n")


def _write_sprite(path: Path, thumbnails: Tensor, side: int, labels: Sequence[int] | None) -> None:
    """Write the thumbnails in rows, each framed in the color of its label. By default, TensorBoard adds none.

    Gray thumbnails have SPRITE_GRAYS levels, and a third of the bytes.
    """
    from PIL import Image, ImageOps

    columns, frame = math.ceil(math.sqrt(len(thumbnails))), max(1, side // THUMBNAIL_FRAME_RATIO)
    colors = None if labels is None else (255 * pick_colors(1 + max(labels, default=0))).round().astype(int)
    sprite = Image.new("RGB", (columns * side, columns * side))
    for index, pixels in enumerate(thumbnails):
        row, column = divmod(index, columns)
        image = to_pil_image(pixels).convert("RGB").resize((side, side))
        if labels is not None and colors is not None:
            inner = image.crop((frame, frame, side - frame, side - frame))
            image = ImageOps.expand(inner, frame, tuple(colors[labels[index], :3].tolist()))
        sprite.paste(image, (column * side, row * side))
    if thumbnails.shape[1] == 1:
        num_colors = SPRITE_GRAYS + (0 if colors is None else len(colors))
        sprite = sprite.quantize(min(256, num_colors), dither=Image.Dither.NONE)
    write_file(path, encode_png(sprite))
