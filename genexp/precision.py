"""Numbers wide enough for what cannot be computed in sixteen bits."""

from __future__ import annotations

import torch
from torch import Tensor


def promote_to_float32(tensor: Tensor) -> Tensor:
    """Return a floating tensor in float32, or in float64 where that is the precision of all computation."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
