"""Autoregressive transformer over sequences of codes (Vaswani et al. 2017; Radford et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4  # hidden units of the dense part of a layer, as a multiple of the width

# Keys and values of the positions so far, in one layer: (batch, heads, positions, width / heads) each.
Cache = tuple[Tensor, Tensor]


class CodePrior(nn.Module):
    """Distribution of each code of a sequence given the codes before it."""

    def __init__(self, num_codes: int, length: int, *, width: int, num_layers: int, num_heads: int) -> None:
        """Build for sequences of `length` codes, 0 to `num_codes` - 1. `width` is a multiple of `num_heads`."""
        super().__init__()
        self.length = length
        self.num_codes = num_codes
        self.embed_code = nn.Embedding(num_codes + 1, width)  # the last one is the input before the first code
        self.embed_position = nn.Embedding(length, width)
        self.layers = nn.ModuleList(CausalLayer(width, num_heads) for _ in range(num_layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_codes))
        for embedding in (self.embed_code, self.embed_position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits of codes: (batch, length) → (batch, length, num_codes).

        The logits of a position depend only on the codes before this position.
        """
        values = self._embed(F.pad(codes[:, :-1], (1, 0), value=self.num_codes), 0)
        for layer in self.layers:
            values, _ = layer(values)
        return self.head(values)

    def sample(self, count: int) -> Tensor:
        """Return random sequences (count, length), code by code."""
        codes = torch.full((count, 1), self.num_codes, device=self.embed_code.weight.device)
        caches: list[Cache | None] = [None] * len(self.layers)
        for position in range(self.length):
            values = self._embed(codes[:, -1:], position)
            for index, layer in enumerate(self.layers):
                values, caches[index] = layer(values, caches[index])
            probabilities = self.head(values[:, 0]).float().softmax(1)
            codes = torch.cat([codes, probabilities.multinomial(1)], dim=1)
        return codes[:, 1:]

    def _embed(self, codes: Tensor, first_position: int) -> Tensor:
        positions = torch.arange(first_position, first_position + codes.shape[1], device=codes.device)
        return self.embed_code(codes) + self.embed_position(positions)


class CausalLayer(nn.Module):
    """Transformer layer with normalization before causal self-attention and before the dense part (pre-norm)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_queries_keys_values = nn.Linear(width, 3 * width)
        self.from_attention = nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, EXPANSION * width),
            nn.GELU(),
            nn.Linear(EXPANSION * width, width),
        )

    def forward(self, values: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Return values (batch, positions, width) and the cache of the positions so far.

        With `cache`, `values` are those of the next position alone, (batch, 1, width).
        """
        projected = self.to_queries_keys_values(self.attention_norm(values))
        # (batch, positions, 3 · width) → three of (batch, heads, positions, width / heads)
        queries, keys, new_values = projected.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, new_values = torch.cat([cache[0], keys], 2), torch.cat([cache[1], new_values], 2)
        attended = F.scaled_dot_product_attention(queries, keys, new_values, is_causal=cache is None)
        values = values + self.from_attention(attended.transpose(1, 2).flatten(2))
        return values + self.dense(values), (keys, new_values)
