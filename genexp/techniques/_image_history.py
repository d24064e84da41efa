"""Buffer of past generated images for training discriminators (Shrivastava et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genexp.sharding import gather_rows, local_rows


class ImageHistory(nn.Module):
    """Buffer of images that replaces some of the new images by stored ones."""

    images: Tensor  # (capacity, *shape)
    count: Tensor  # int64 scalar: images stored so far, at most the capacity

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(capacity, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, images: Tensor) -> Tensor:
        """Return images of the shape of `images` (batch, ...), some of them replaced by stored ones.

        Each new image is returned with probability 0.5. Otherwise a random stored image is returned, and the new
        image is stored in its place. Until the buffer is full, new images are stored and returned. In a batch
        larger than the capacity, the images after the first `capacity` ones are returned unchanged. No operation
        synchronizes with the device.
        """
        capacity, images = len(self.images), gather_rows(images)
        new, remainder = images[:capacity], images[capacity:]
        next_slots = self.count + torch.arange(len(new), device=images.device)
        is_full = self.count >= capacity
        should_swap = torch.rand(len(new), device=images.device) < 0.5
        random_slots = torch.randperm(capacity, device=images.device)[: len(new)]  # no slot is drawn twice
        slots = torch.where(is_full, random_slots, next_slots % capacity)
        old = self.images[slots]
        is_swapped = _expand_mask(is_full & should_swap, images)
        is_stored = _expand_mask(torch.where(is_full, should_swap, next_slots < capacity), images)
        self.images.index_copy_(0, slots, torch.where(is_stored, new.to(old.dtype), old))
        self.count.add_(len(new)).clamp_(max=capacity)
        return local_rows(torch.cat([torch.where(is_swapped, old.to(new.dtype), new), remainder]))


def _expand_mask(mask: Tensor, images: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (images.dim() - 1))
