"""GIFs grow on disk and can be looked at, cut back and continued after every frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from genexp.recorders.gif import PreviewGifRecorder, append_frame, write_gif
from genexp.recorders.pil_images import enlarge_small_image, to_pil_image
from genexp.snapshot import Snapshot
from tests.support.snapshots import clock, cut_back, picture, record_blocks, recording, run_info, sizes, snapshot


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        return [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]


def as_shown(pixels: Tensor) -> np.ndarray:
    return np.array(enlarge_small_image(to_pil_image(pixels)).convert("RGB"))


def test_gray_frames_are_exact_and_valid_after_each_one(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    with recording(PreviewGifRecorder(), run) as gif:
        for count, step in enumerate((0, 10, 20), start=1):
            gif.record(snapshot(step, run, preview_images={"samples": picture(step)}))
            frames = frames_of(tmp_path / "samples.gif")
            assert len(frames) == count
            np.testing.assert_array_equal(frames[-1], as_shown(picture(step)))
    assert (tmp_path / "samples.gif").read_bytes().endswith(b"\x3b")


def test_pictures_of_few_colors_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "colors.gif"
    pictures = [picture(step, channels=3) for step in range(3)]
    write_gif(path, pictures, frame_duration_ms=100)
    for frame, pixels in zip(frames_of(path), pictures, strict=True):
        np.testing.assert_array_equal(frame, as_shown(pixels))


def test_a_photograph_keeps_its_colors_nearly(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 255, 300)
    pixels = torch.stack([ramp.expand(300, 300), ramp[:, None].expand(300, 300), ramp.flip(0).expand(300, 300)])
    write_gif(tmp_path / "ramp.gif", [pixels.to(torch.uint8)] * 2, frame_duration_ms=100)
    error = frames_of(tmp_path / "ramp.gif")[1].astype(float) - pixels.numpy().transpose(1, 2, 0)
    assert np.sqrt((error**2).mean()) < 10


def test_it_loops_forever_at_the_given_pace(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", [picture(1), picture(2)], frame_duration_ms=150)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.info["loop"], gif.info["duration"]) == (0, 150)
        assert gif.mode == "L"


def test_small_pictures_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", [picture(1, (28, 30))], frame_duration_ms=100)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (300, 280)


def test_each_preview_has_its_own_gif(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    with recording(PreviewGifRecorder(), run) as gif:
        gif.record(snapshot(0, run, preview_images={"samples": picture(1), "reconstructions": picture(2)}))
        assert gif.append_only_files() == [tmp_path / "reconstructions.gif", tmp_path / "samples.gif"]


def test_the_first_frame_settles_the_size(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", [picture(1, (64, 64), 3), picture(2, (128, 128), 3)], frame_duration_ms=100)
    assert [frame.shape for frame in frames_of(tmp_path / "a.gif")] == [(256, 256, 3)] * 2


def test_gray_can_follow_color(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", [picture(1, channels=3), picture(2)], frame_duration_ms=100)
    np.testing.assert_array_equal(frames_of(tmp_path / "a.gif")[1], as_shown(picture(2)))


@pytest.mark.parametrize("channels", [1, 3])
def test_cut_back_and_continued_equals_uninterrupted(tmp_path: Path, channels: int) -> None:
    straight, broken = run_info(tmp_path / "straight"), run_info(tmp_path / "broken")

    def record(gif: PreviewGifRecorder, steps: tuple[int, ...]) -> None:
        for step in steps:
            pixels = picture(step, channels=channels)
            gif.record(Snapshot(clock(step, straight), preview_images={"samples": pixels}))

    with recording(PreviewGifRecorder(), straight) as gif:
        record(gif, (0, 10, 20, 30, 40))
    with recording(PreviewGifRecorder(), broken) as killed:
        record(killed, (0, 10, 20))
        noted = sizes(killed)
        record(killed, (30,))
    cut_back(noted)
    with recording(PreviewGifRecorder(), run_info(tmp_path / "broken", completed_steps=20)) as resumed:
        assert len(frames_of(tmp_path / "broken/samples.gif")) == 3
        assert resumed.append_only_files() == [tmp_path / "broken/samples.gif"]
        record(resumed, (20, 30, 40))
    assert (tmp_path / "broken/samples.gif").read_bytes() == (tmp_path / "straight/samples.gif").read_bytes()


def test_a_kill_between_the_two_writes_leaves_the_gif_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    write_gif(path, [picture(1), picture(2)], frame_duration_ms=100)
    whole = path.read_bytes()
    append_frame(path, picture(3), frame_duration_ms=100)
    path.write_bytes(whole + path.read_bytes()[len(whole) :])  # all but the byte over the old trailer
    assert len(frames_of(path)) == 2


def test_a_fresh_run_replaces_the_gif_of_an_older_one(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    for _ in range(2):
        with recording(PreviewGifRecorder(), run) as gif:
            record_blocks(gif, run, (0, 10))
    assert len(frames_of(tmp_path / "reconstructions.gif")) == 2
