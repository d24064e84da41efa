"""GIFs that are valid, can be truncated and can be continued after every frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genexp.recorders.gif import PreviewGifRecorder, append_frame, write_gif
from genexp.recorders.pil_images import enlarge_small_image, to_pil_image
from genexp.snapshot import Snapshot
from tests.support.images import read_frames
from tests.support.snapshots import (
    flush_and_get_sizes,
    make_clock,
    make_image,
    make_run_info,
    make_snapshot,
    open_recorder,
    record_snapshots,
    truncate_files,
)


def render_frame(pixels: Tensor) -> np.ndarray:
    return np.array(enlarge_small_image(to_pil_image(pixels)).convert("RGB"))


def test_gray_frames_are_exact_and_valid_after_each_one(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(PreviewGifRecorder(), run) as gif:
        for count, step in enumerate((0, 10, 20), start=1):
            gif.record(make_snapshot(step, run, preview_images={"samples": make_image(step)}))
            frames = read_frames(tmp_path / "samples.gif")
            assert len(frames) == count
            np.testing.assert_array_equal(frames[-1], render_frame(make_image(step)))
    assert (tmp_path / "samples.gif").read_bytes().endswith(b"\x3b")


def test_images_with_few_colors_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "colors.gif"
    images = [make_image(step, channels=3) for step in range(3)]
    write_gif(path, images, frame_duration_ms=100)
    for frame, pixels in zip(read_frames(path), images, strict=True):
        np.testing.assert_array_equal(frame, render_frame(pixels))


def test_photograph_colors_are_approximated(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 255, 300)
    pixels = torch.stack([ramp.expand(300, 300), ramp[:, None].expand(300, 300), ramp.flip(0).expand(300, 300)])
    write_gif(tmp_path / "ramp.gif", [pixels.to(torch.uint8)] * 2, frame_duration_ms=100)
    error = read_frames(tmp_path / "ramp.gif")[1].astype(float) - pixels.numpy().transpose(1, 2, 0)
    assert np.sqrt((error**2).mean()) < 10


def test_gif_loops_forever_with_the_given_frame_duration(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", [make_image(1), make_image(2)], frame_duration_ms=150)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.info["loop"], gif.info["duration"]) == (0, 150)
        assert gif.mode == "L"


def test_small_images_are_enlarged_by_an_integer_factor(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", [make_image(1, (28, 30))], frame_duration_ms=100)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (300, 280)


def test_each_preview_has_its_own_gif(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(PreviewGifRecorder(), run) as gif:
        gif.record(
            make_snapshot(0, run, preview_images={"samples": make_image(1), "reconstructions": make_image(2)})
        )
        assert gif.append_only_files() == [tmp_path / "reconstructions.gif", tmp_path / "samples.gif"]


def test_first_frame_sets_the_size(tmp_path: Path) -> None:
    write_gif(
        tmp_path / "a.gif", [make_image(1, (64, 64), 3), make_image(2, (128, 128), 3)], frame_duration_ms=100
    )
    assert [frame.shape for frame in read_frames(tmp_path / "a.gif")] == [(256, 256, 3)] * 2


def test_gray_frame_can_follow_a_color_frame(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", [make_image(1, channels=3), make_image(2)], frame_duration_ms=100)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.gif")[1], render_frame(make_image(2)))


@pytest.mark.parametrize("channels", [1, 3])
def test_truncated_and_resumed_gif_equals_uninterrupted_gif(tmp_path: Path, channels: int) -> None:
    uninterrupted, broken = make_run_info(tmp_path / "straight"), make_run_info(tmp_path / "broken")

    def record(gif: PreviewGifRecorder, steps: tuple[int, ...]) -> None:
        for step in steps:
            pixels = make_image(step, channels=channels)
            gif.record(Snapshot(make_clock(step, uninterrupted), preview_images={"samples": pixels}))

    with open_recorder(PreviewGifRecorder(), uninterrupted) as gif:
        record(gif, (0, 10, 20, 30, 40))
    with open_recorder(PreviewGifRecorder(), broken) as killed:
        record(killed, (0, 10, 20))
        file_sizes = flush_and_get_sizes(killed)
        record(killed, (30,))
    truncate_files(file_sizes)
    with open_recorder(PreviewGifRecorder(), make_run_info(tmp_path / "broken", completed_steps=20)) as resumed:
        assert len(read_frames(tmp_path / "broken/samples.gif")) == 3
        assert resumed.append_only_files() == [tmp_path / "broken/samples.gif"]
        record(resumed, (20, 30, 40))
    assert (tmp_path / "broken/samples.gif").read_bytes() == (tmp_path / "straight/samples.gif").read_bytes()


def test_kill_between_the_two_writes_keeps_the_previous_gif(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    write_gif(path, [make_image(1), make_image(2)], frame_duration_ms=100)
    whole = path.read_bytes()
    append_frame(path, make_image(3), frame_duration_ms=100)
    path.write_bytes(whole + path.read_bytes()[len(whole) :])  # without the byte that replaces the old trailer
    assert len(read_frames(path)) == 2


def test_a_fresh_run_replaces_the_gif_of_an_older_one(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    for _ in range(2):
        with open_recorder(PreviewGifRecorder(), run) as gif:
            record_snapshots(gif, run, (0, 10))
    assert len(read_frames(tmp_path / "reconstructions.gif")) == 2
