"""Latent walks: spherical interpolation of noise."""

from __future__ import annotations

import torch

from genexp.images.latent_walks import slerp


def test_slerp_preserves_the_norm() -> None:
    start, end = torch.randn(5, 100), torch.randn(5, 100)
    torch.testing.assert_close(slerp(start, end, 0.0), start)
    torch.testing.assert_close(slerp(start, end, 1.0), end)
    middle = slerp(start, end, 0.5).norm(dim=1)
    assert (middle > 0.8 * start.norm(dim=1)).all()
