"""Binary images: bits sampled with the gray value as probability, at each call or once for each image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Odd 64-bit constants of the SplitMix64 generator (Steele, Lea & Flood 2014), as signed integers.
GOLDEN_GAMMA, MIX_1, MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
RANDOM_BITS = 24  # of a threshold: the precision of a float32 in [0, 1)


def draw_bits(images: Tensor) -> Tensor:
    """Return random bits: a pixel of gray value g in [0, 1] is 1.0 with probability g, otherwise 0.0.

    The result has the shape of `images` (batch, ...). Draws from torch's global generator (Salakhutdinov & Murray
    2008).
    """
    return (torch.rand_like(images) < images).to(images.dtype)


def draw_fixed_bits(images: Tensor) -> Tensor:
    """Return binary images that depend on `images` (batch, ...) in [0, 1] alone, in the same shape.

    The random numbers are a hash of the image's 8-bit values and of the pixel's position. Equal images have equal
    bits in each epoch, run and process. Other programs that binarize images once have other bits.
    """
    levels = (images * 255).round().long().flatten(1)  # (batch, pixels)
    positions = GOLDEN_GAMMA * torch.arange(1, levels.shape[1] + 1, device=images.device)
    keys = _mix(levels + positions).sum(1, keepdim=True)  # one per image
    thresholds = (_mix(keys + positions) >> (64 - RANDOM_BITS)) & (2**RANDOM_BITS - 1)
    return (thresholds.to(images.dtype) / 2**RANDOM_BITS < images.flatten(1)).to(images.dtype).view_as(images)


def _mix(values: Tensor) -> Tensor:
    """Return the hash of int64 values by the finalizer of SplitMix64; products wrap around."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        values = (values ^ _shift_right(values, shift)) * factor
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Return int64 values shifted right, with zeros as the new bits."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


# Name → function from images in [0, 1] to the pixels whose likelihood is computed, in the same shape.
BINARIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gray": lambda images: images,
    "drawn": draw_bits,
    "fixed": draw_fixed_bits,
}
