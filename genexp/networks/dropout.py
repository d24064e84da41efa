"""Dropout (Srivastava et al. 2014) by draws that cost a processor little."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

MASK_LEVELS = 2**16  # a rate is met to half of one part in as many; each number wants 16 random bits


class Dropout(nn.Dropout):
    """nn.Dropout, but for where its random numbers come from."""

    def forward(self, values: Tensor) -> Tensor:
        """Return values (any shape), of which in training each is 0 with probability `p`, and else the larger."""
        return dropout(values, self.p, self.training)


def dropout(values: Tensor, p: float, training: bool) -> Tensor:
    """Do what torch.nn.functional.dropout does."""
    if has_torch_function_unary(values):  # someone who draws otherwise: see processes/loss.py, vectorized/draws.py
        result: Tensor = handle_torch_function(dropout, (values,), values, p, training)
        return result
    if not training or not p:
        return values
    return values * dropout_mask(values, p) if values.device.type == "cpu" else F.dropout(values, p)


def dropout_mask(reference: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Return what to multiply values `like` these with on a processor: 0 with probability `p`, else 1 / (1 - p).

    It lies in memory as they do, and is a function of the state of `generator`, which is torch's own if None.
    """
    keep_levels = round((1 - p) * MASK_LEVELS)
    if keep_levels in (0, MASK_LEVELS):
        return torch.full_like(reference, keep_levels / MASK_LEVELS)
    seed = torch.randint(2**62, (), generator=generator).item()
    random_uint64 = np.random.SFC64(int(seed)).random_raw(-(-reference.numel() // 4))
    levels = torch.from_numpy(random_uint64.view(np.int16))
    mask = torch.empty_like(reference)
    torch.lt(levels.as_strided(mask.shape, mask.stride()), keep_levels - MASK_LEVELS // 2, out=mask)
    return mask.mul_(MASK_LEVELS / keep_levels)
