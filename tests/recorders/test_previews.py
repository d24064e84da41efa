"""Previews as PNG files, and their animations: thinned evenly, equal after a resumption."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genexp.images.animation import MAX_FRAMES
from genexp.recorders.pil_images import CAPTION_PIXELS
from genexp.recorders.previews import PreviewRecorder, compute_preview_stride
from genexp.reports.embedded_images import find_run_images
from genexp.snapshot import RunInfo, Snapshot
from genexp.technique import PictureLabels
from tests.support.images import read_frames
from tests.support.snapshots import FINISHED_OUTCOME, make_clock, make_image, make_run_info, open_recorder

EPOCH_STEPS = 10  # of `make_run_info`


def record_previews(recorder: PreviewRecorder, run: RunInfo, epochs: Iterable[int], name: str = "samples") -> None:
    """Record a preview at the end of each epoch; epoch 0 is the state before the first step."""
    for epoch in epochs:
        image = make_image(epoch, (8, 8))
        recorder.record(Snapshot(make_clock(epoch * EPOCH_STEPS, run), preview_images={name: image}))


def list_previews(run: RunInfo, name: str = "samples") -> list[int]:
    """Return the epochs of the previews on the disk."""
    return sorted(int(path.stem) // EPOCH_STEPS for path in (run.run_dir / "previews" / name).iterdir())


def read_gray_levels(path: Path) -> list[np.ndarray]:
    """Return the frames of a GIF at the size of the previews."""
    return [frame[CAPTION_PIXELS::80, ::80] for frame in read_frames(path, "L")]


def test_animation_shows_all_previews_enlarged(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(PreviewRecorder(preview_every=1), run) as recorder:
        record_previews(recorder, run, range(4))
    assert list_previews(run) == [0, 1, 2, 3]
    with Image.open(tmp_path / "samples.gif") as gif:
        assert gif.size == (640, 640 + CAPTION_PIXELS)
        assert gif.info["duration"] == 200
    for epoch, frame in enumerate(read_gray_levels(tmp_path / "samples.gif")):
        np.testing.assert_allclose(frame.astype(int), make_image(epoch, (8, 8))[0].numpy(), atol=4)  # 5 bits


def test_first_preview_sets_the_size_of_the_animation(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(PreviewRecorder(preview_every=1), run) as recorder:
        for step, side in ((0, 64), (10, 128)):
            image = make_image(1, (side, side), 3)
            recorder.record(Snapshot(make_clock(step, run), preview_images={"samples": image}))
    assert [frame.shape for frame in read_frames(tmp_path / "samples.gif")] == [(640 + CAPTION_PIXELS, 640, 3)] * 2


@pytest.mark.parametrize("video_format", ["gif", "mp4"])
def test_each_preview_has_its_own_animation_in_the_chosen_format(tmp_path: Path, video_format: str) -> None:
    if video_format == "mp4":
        pytest.importorskip("av", reason="needs the extra video")
    run = make_run_info(tmp_path)
    with open_recorder(PreviewRecorder(1, video_format), run) as recorder:
        for name in ("samples", "reconstructions"):
            record_previews(recorder, run, range(2), name)
    found = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert found == {f"samples.{video_format}", f"reconstructions.{video_format}"}


def test_animation_is_written_once_at_the_end(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(PreviewRecorder(preview_every=1), run) as recorder:
        record_previews(recorder, run, range(12))
        assert list(tmp_path.glob("*.gif")) == []
    assert len(read_frames(tmp_path / "samples.gif")) == 12


def test_preview_has_the_labels_of_its_rows_and_columns(tmp_path: Path) -> None:
    labels = PictureLabels(rows=("원본", "noisy"))
    run = dataclasses.replace(make_run_info(tmp_path), picture_labels={"samples": labels})
    with open_recorder(PreviewRecorder(preview_every=1), run) as recorder:
        record_previews(recorder, run, range(2))
    (image, *_), omitted_files = find_run_images(tmp_path)
    assert (image.name, image.caption, len(image.frames), omitted_files) == ("samples", "rows: 원본, noisy", 2, [])


@pytest.fixture
def ten_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit animations to ten frames, since encoding hundreds takes seconds."""
    monkeypatch.setattr("genexp.recorders.previews.MAX_FRAMES", 10)


@pytest.mark.usefixtures("ten_frames")
@pytest.mark.parametrize(("last", "stride"), [(8, 1), (9, 1), (10, 2), (18, 2), (19, 4), (50, 8)])
def test_previews_of_a_long_run_are_thinned_evenly(tmp_path: Path, last: int, stride: int) -> None:
    run = make_run_info(tmp_path, total_steps=10**6)
    recorder = PreviewRecorder(preview_every=1)
    recorder.open(run)
    record_previews(recorder, run, range(last + 1))
    expected = sorted({*range(0, last + 1, stride), last})
    assert list_previews(run) == expected
    assert len(expected) <= 10
    recorder.close(FINISHED_OUTCOME)
    assert len(read_frames(tmp_path / "samples.gif")) == len(expected)


def test_stride_keeps_between_a_half_and_all_of_the_allowed_previews() -> None:
    for step in (*range(0, 5000, 7), 10**9):
        stride = compute_preview_stride(step, 5)
        kept = step // stride + 1 + bool(step % stride)
        assert kept <= MAX_FRAMES
        assert stride == 5 or kept >= MAX_FRAMES // 2


@pytest.mark.usefixtures("ten_frames")
@pytest.mark.parametrize(("killed_at", "checkpoint", "last"), [(3, 2, 4), (13, 11, 14), (21, 17, 30)])
def test_killed_and_resumed_run_ends_with_the_same_files(
    tmp_path: Path, killed_at: int, checkpoint: int, last: int
) -> None:
    uninterrupted, broken = make_run_info(tmp_path / "straight"), make_run_info(tmp_path / "broken")
    with open_recorder(PreviewRecorder(preview_every=1), uninterrupted) as recorder:
        record_previews(recorder, uninterrupted, range(last + 1))
    killed = PreviewRecorder(preview_every=1)
    killed.open(broken)
    record_previews(killed, broken, range(killed_at + 1))
    resumed = make_run_info(broken.run_dir, completed_steps=checkpoint * EPOCH_STEPS)
    with open_recorder(PreviewRecorder(preview_every=1), resumed) as recorder:
        assert max(list_previews(broken)) <= checkpoint
        record_previews(recorder, resumed, range(checkpoint, last + 1))
    assert list_previews(broken) == list_previews(uninterrupted)
    assert (broken.run_dir / "samples.gif").read_bytes() == (uninterrupted.run_dir / "samples.gif").read_bytes()


def test_preview_of_an_early_end_is_dropped_once_the_run_goes_on(tmp_path: Path) -> None:
    """A run that is out of time ends with a preview in the middle of an epoch."""
    run = make_run_info(tmp_path)
    with open_recorder(PreviewRecorder(preview_every=1), run) as recorder:
        record_previews(recorder, run, range(2))
        recorder.record(Snapshot(make_clock(13, run), preview_images={"samples": make_image(13)}))
    assert len(read_frames(tmp_path / "samples.gif")) == 3
    resumed = make_run_info(tmp_path, completed_steps=13)
    with open_recorder(PreviewRecorder(preview_every=1), resumed) as recorder:
        record_previews(recorder, resumed, [2])
    assert [int(path.stem) for path in sorted((tmp_path / "previews/samples").iterdir())] == [0, 10, 20]


def test_a_fresh_run_replaces_the_previews_of_an_older_one(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(PreviewRecorder(preview_every=1), run) as recorder:
        record_previews(recorder, run, range(5))
    with open_recorder(PreviewRecorder(preview_every=1), run) as recorder:
        assert not (tmp_path / "samples.gif").exists()
        record_previews(recorder, run, range(2))
    assert list_previews(run) == [0, 1]
    assert len(read_frames(tmp_path / "samples.gif")) == 2
