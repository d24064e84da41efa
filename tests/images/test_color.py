"""Color modes of style transfer."""

from __future__ import annotations

import torch

from genexp.images.color import COLOR_MODES


def test_histogram_mode_recolors_the_style_image() -> None:
    content, style = (
        torch.rand(1, 3, 30, 40) * torch.tensor([0.2, 0.5, 0.3]).view(3, 1, 1) + 0.3,
        torch.rand(1, 3, 20, 20),
    )
    same, recolored = COLOR_MODES["histogram"].preprocess(content, style)
    assert torch.equal(same, content)
    torch.testing.assert_close(recolored.mean((0, 2, 3)), content.mean((0, 2, 3)), atol=1e-2, rtol=0)
    covariances = [image[0].flatten(1).cov() for image in (recolored, content)]
    torch.testing.assert_close(*covariances, atol=2e-3, rtol=0)
