"""Size limits of images embedded in reports."""

from __future__ import annotations

from pathlib import Path

from genexp.images.animation import encode_animation
from genexp.reports.embedded_images import drop_gif_frames
from tests.support.images import read_frames
from tests.support.snapshots import make_image


def test_large_gif_is_thinned_and_keeps_first_and_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    data = encode_animation([make_image(step, (64, 64))[0].numpy() for step in range(40)], "gif", 100)
    path.write_bytes(data)
    (tmp_path / "b.gif").write_bytes(drop_gif_frames(data, len(data) // 4))
    whole, thin = ([frame.tobytes() for frame in read_frames(tmp_path / name, "L")] for name in ("a.gif", "b.gif"))
    assert 5 <= len(thin) <= 10
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    assert set(thin) <= set(whole)
