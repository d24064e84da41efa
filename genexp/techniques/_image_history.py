"""Generated images of the past, which discriminators meet again (Shrivastava et al. 2017): they do not forget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genexp.sharding import gather_rows, local_rows


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
        new, remainder = images[:capacity], images[capacity:]
        next_slots = self.count + torch.arange(len(new), device=images.device)
        is_full = self.count >= capacity
        should_swap = torch.rand(len(new), device=images.device) < 0.5
        random_slots = torch.randperm(capacity, device=images.device)[: len(new)]  # no slot twice
        slots = torch.where(is_full, random_slots, next_slots % capacity)
        old = self.images[slots]
        is_swapped = _broadcast_per_image(is_full & should_swap, images)
        is_stored = _broadcast_per_image(torch.where(is_full, should_swap, next_slots < capacity), images)
        self.images.index_copy_(0, slots, torch.where(is_stored, new.to(old.dtype), old))
        self.count.add_(len(new)).clamp_(max=capacity)
        return local_rows(torch.cat([torch.where(is_swapped, old.to(new.dtype), new), remainder]))


def _broadcast_per_image(choices: Tensor, images: Tensor) -> Tensor:
    return choices.view(-1, *[1] * (images.dim() - 1))
