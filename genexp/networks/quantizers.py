"""Quantizers of vectors: codebook of moving averages (van den Oord et al. 2017), and FSQ (Mentzer et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.sharding import batch_mean, gather_rows

BOUND_MARGIN = 1e-3  # relative; finite values reach the outermost levels of FSQ


@dataclass(frozen=True)
class Quantization:
    """Result of a quantizer for vectors (batch, positions, size)."""

    vectors: Tensor  # quantized vectors, in the same shape; gradients pass to the input unchanged
    codes: Tensor  # int64 (batch, positions)
    loss: Tensor  # scalar: term of the loss that keeps the input close to its codes


class Quantizer(Protocol):
    """Interface of the quantizers, which are modules."""

    num_codes: int
    size: int  # elements of a vector

    def __call__(self, vectors: Tensor) -> Quantization:
        """Quantize `vectors` (batch, positions, size)."""
        ...

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the vectors (..., size) of codes (...)."""
        ...

    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Update the codebook from `vectors` (batch, positions, size) and their `codes` (batch, positions)."""
        ...


class VectorQuantizer(nn.Module):
    """Nearest neighbors in a codebook. Codes are moving averages of the vectors assigned to them.

    A rarely used code is replaced by a vector of the batch (Dhariwal et al. 2020).
    """

    codebook: Tensor  # (codes, size)
    sums: Tensor  # (codes, size): moving average of the sum of the vectors of each code, per image
    counts: Tensor  # (codes,): moving average of the number of these vectors, per image

    def __init__(
        self, num_codes: int, size: int, *, commitment: float, decay: float, restart_threshold: float
    ) -> None:
        """Build a random codebook.

        `commitment` is the weight of the loss. `decay` is the decay of the moving averages. A code used less than
        `restart_threshold` times the mean use is replaced. With 0, no code is replaced.
        """
        super().__init__()
        self.num_codes, self.size = num_codes, size
        self.commitment, self.decay, self.restart_threshold = commitment, decay, restart_threshold
        codebook = torch.randn(num_codes, size)
        self.register_buffer("codebook", codebook)
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("counts", torch.ones(num_codes))

    def forward(self, vectors: Tensor) -> Quantization:
        """Quantize `vectors` (batch, positions, size)."""
        # The squared norm of a vector is the same for all codes.
        distances = self.codebook.square().sum(1) - 2 * vectors.detach() @ self.codebook.T
        codes = distances.argmin(2)
        quantized = self.look_up(codes)
        loss = self.commitment * F.mse_loss(vectors, quantized)
        return Quantization(vectors + (quantized - vectors).detach(), codes, loss)

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the vectors (..., size) of codes (...)."""
        return self.codebook[codes]

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Set the codebook to random rows of `vectors`, (rows, size)."""
        self._replace(torch.ones(self.num_codes, dtype=torch.bool, device=vectors.device), vectors, self.counts)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Update the codebook by `vectors` (batch, positions, size), assigned to `codes` (batch, positions)."""
        one_hot = F.one_hot(codes, self.num_codes).to(self.sums)  # (batch, positions, codes)
        with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 is too coarse for moving averages
            new_counts = batch_mean(one_hot.sum(1))
            new_sums = batch_mean(one_hot.mT @ vectors.to(self.sums))
        self.counts.lerp_(new_counts, 1 - self.decay)
        self.sums.lerp_(new_sums, 1 - self.decay)
        self.codebook.copy_(self.sums / self.counts.clamp_min(1e-6)[:, None])
        mean_count = self.counts.mean()
        is_dead = self.counts < self.restart_threshold * mean_count
        # If a new code stays unused, its count soon falls below the threshold, and it is replaced again.
        self._replace(is_dead, gather_rows(vectors).flatten(0, 1), 2 * self.restart_threshold * mean_count)

    def _replace(self, is_replaced: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Replace the codes (codes,) where `is_replaced` by random rows of `vectors`, (rows, size).

        Their new counts are `counts`, a scalar or (codes,).
        """
        # A permutation, which is the same in all processes. It draws no row twice unless there are too few.
        order = torch.randperm(len(vectors), device=vectors.device)
        rows = vectors[order[torch.arange(self.num_codes, device=vectors.device) % len(vectors)]]
        self.codebook.copy_(torch.where(is_replaced[:, None], rows, self.codebook))
        self.counts.copy_(torch.where(is_replaced, counts, self.counts))
        self.sums.copy_(torch.where(is_replaced[:, None], rows * self.counts[:, None], self.sums))


class FiniteScalarQuantizer(nn.Module):
    """Finite scalar quantization: each element is rounded to one of a few levels. No codebook is learned."""

    levels: Tensor  # int64 (size,)
    place_values: Tensor  # int64 (size,): codes are numbers with these place values

    def __init__(self, levels: Sequence[int]) -> None:
        """Build for `levels`: the number of values of each element, 3 or more."""
        super().__init__()
        self.num_codes, self.size = math.prod(levels), len(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        place_values = [math.prod(levels[:index]) for index in range(len(levels))]
        self.register_buffer("place_values", torch.tensor(place_values), persistent=False)

    def forward(self, vectors: Tensor) -> Quantization:
        """Quantize `vectors` (batch, positions, size)."""
        bounded = self._bound(vectors)
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = rounded.detach().round().long() + self.levels // 2
        codes = (digits * self.place_values).sum(2)
        return Quantization(rounded / (self.levels // 2), codes, torch.zeros((), device=vectors.device))

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the vectors (..., size) of codes (...), with elements in [-1, 1]."""
        digits = codes[..., None] // self.place_values % self.levels
        half = self.levels // 2
        return (digits - half).to(torch.get_default_dtype()) / half

    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Do nothing, since the levels are fixed. The arguments have the shapes of `VectorQuantizer.update`."""

    def _bound(self, vectors: Tensor) -> Tensor:
        """Return `vectors` bounded such that rounding gives exactly `levels` values in each element.

        For an even number of levels these are -levels/2 to levels/2 - 1, and the bounds are not symmetric.
        """
        half_width = (self.levels - 1) * (1 + BOUND_MARGIN) / 2
        offset = (self.levels % 2 == 0) * 0.5
        shift = (offset / half_width).atanh()
        return (vectors + shift).tanh() * half_width - offset
