"""Image history of CycleGAN."""

from __future__ import annotations

import torch

from genexp.techniques._image_history import ImageHistory


def test_image_history_returns_new_images_until_full() -> None:
    history = ImageHistory(10, (1, 2, 2))
    for first in (0, 4, 8):
        images = torch.arange(first, first + 4.0).view(4, 1, 1, 1).expand(-1, 1, 2, 2)
        assert torch.equal(history.exchange(images), images)
    assert history.images[:, 0, 0, 0].tolist() == list(range(10))


def test_full_image_history_exchanges_half_of_the_images() -> None:
    torch.manual_seed(0)
    history = ImageHistory(50, (1,))
    history.exchange(torch.arange(50.0)[:, None])
    everything = set(range(50))
    handed_out: list[float] = []
    for first in range(100, 2100, 20):
        new = torch.arange(first, first + 20.0)[:, None]
        everything |= set(range(first, first + 20))
        handed_out += history.exchange(new).flatten().tolist()
    # Each image is returned once: immediately, or later in exchange for a newer one.
    assert len(set(handed_out)) == len(handed_out)
    assert set(handed_out) | set(history.images.flatten().tolist()) == everything
    old = sum(image < 100 + index // 20 * 20 for index, image in enumerate(handed_out))
    assert 0.45 < old / len(handed_out) < 0.55


def test_images_beyond_the_history_size_pass_through() -> None:
    history = ImageHistory(3, (1,))
    for first in (0, 7):
        images = torch.arange(first, first + 7.0)[:, None]
        returned = history.exchange(images)
        assert torch.equal(returned[3:], images[3:])
