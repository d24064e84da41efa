"""GIF and MP4 files of frames."""

from __future__ import annotations

import io

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image, ImageSequence

from genexp.images.animation import Frame, encode_animation, thin_evenly


def make_frame(seed: int, *shape: int) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def decode(content: bytes) -> list[np.ndarray]:
    """Return the RGB frames of a GIF."""
    with Image.open(io.BytesIO(content)) as gif:
        return [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]


def make_photograph(shift: int) -> Frame:
    """Return an image (200, 200, 3) of 40,000 colors."""
    ramp = np.arange(200)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    return np.stack([rows, columns, (rows + columns) // 2 + shift], axis=2).astype(np.uint8)


def test_gray_frames_have_32_levels_and_few_colors_are_exact() -> None:
    frames = [make_frame(0, 10, 12), make_frame(1, 10, 12), make_frame(2, 10, 12, 3)]
    *gray, colored = decode(encode_animation(frames, "gif", 100))
    np.testing.assert_array_equal(colored, frames[2])
    for found, frame in zip(gray, frames, strict=False):
        assert len(np.unique(found)) <= 32
        np.testing.assert_allclose(found, frame[..., None].repeat(3, axis=2), atol=255 / 31 / 2)


def test_photograph_colors_are_approximated() -> None:
    frames = [make_photograph(0), make_photograph(50)]
    for found, frame in zip(decode(encode_animation(frames, "gif", 100)), frames, strict=True):
        assert np.sqrt(((found.astype(float) - frame) ** 2).mean()) < 7


@pytest.mark.parametrize("milliseconds", [20, 200, 440, 449, 1000])
def test_gif_loops_forever_with_the_frame_duration_in_hundredths(milliseconds: int) -> None:
    content = encode_animation([make_frame(seed, 9, 9) for seed in range(3)], "gif", milliseconds)
    with Image.open(io.BytesIO(content)) as gif:
        assert gif.info["loop"] == 0
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert durations == [milliseconds // 10 * 10] * 3


def test_equal_frames_become_one_that_is_shown_longer() -> None:
    content = encode_animation([make_frame(0, 9, 9), make_frame(1, 9, 9), make_frame(1, 9, 9)], "gif", 100)
    with Image.open(io.BytesIO(content)) as gif:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(gif)] == [100, 200]


def test_mp4_has_even_sides_and_the_frame_rate() -> None:
    pytest.importorskip("av", reason="needs the extra video")
    frames = [np.full((31, 40), level, np.uint8) for level in (0, 128, 255)]
    frames.append(np.zeros((31, 40, 3), np.uint8))
    content = encode_animation(frames, "mp4", 200)
    found = imageio.imread(content, plugin="pyav")
    assert found.shape == (4, 32, 40, 3)
    assert found.mean(axis=(1, 2, 3)) == pytest.approx([0, 128, 255, 0], abs=3)
    assert imageio.immeta(content, plugin="pyav")["fps"] == 5
    assert encode_animation(frames, "mp4", 200) == content


@pytest.mark.parametrize(("count", "limit"), [(1, 5), (2, 2), (5, 5), (7, 3), (1000, 200)])
def test_thinned_indices_are_even_with_both_ends(count: int, limit: int) -> None:
    indices = thin_evenly(count, limit)
    assert len(indices) == min(count, limit)
    assert (indices[0], indices[-1]) == (0, count - 1)
    gaps = np.diff(indices)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
