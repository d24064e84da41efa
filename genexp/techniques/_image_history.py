"""Generated images of the past, which discriminators meet again (Shrivastava et al. 2017): they do not forget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genexp.sharding import local_rows, gather_rows


class ImageHistory(nn.Module):
    """Keeps some images, and hands them out in the place of new ones."""

    images: Tensor
    count: Tensor

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(capacity, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, images: Tensor) -> Tensor:
        """Return as many images (batch, ...): each, with even odds, a new one, or an old one that it replaces.

        Until the history is full, new images are kept and returned. Nothing waits for the device.
        """
        capacity, images = len(self.images), gather_rows(images)
        new, others = images[:capacity], images[capacity:]
        following = self.count + torch.arange(len(new), device=images.device)
        full = self.count >= capacity
        coins = torch.rand(len(new), device=images.device) < 0.5
        drawn = torch.randperm(capacity, device=images.device)[: len(new)]  # no slot twice
        slots = torch.where(full, drawn, following % capacity)
        old = self.images[slots]
        swapped = _per_image(full & coins, images)
        kept = _per_image(torch.where(full, coins, following < capacity), images)
        self.images.index_copy_(0, slots, torch.where(kept, new.to(old.dtype), old))
        self.count.add_(len(new)).clamp_(max=capacity)
        return local_rows(torch.cat([torch.where(swapped, old.to(new.dtype), new), others]))


def _per_image(choices: Tensor, images: Tensor) -> Tensor:
    return choices.view(-1, *[1] * (images.dim() - 1))
