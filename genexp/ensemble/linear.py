"""Linear layers in rows. What autograd makes of a matrix product in rows lies transposed: copying it costs as much
again as computing it. Here gradients lie as weights do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what torch.nn.functional.linear does, under vmap."""
    use_torch = torch.is_autocast_enabled(values.device.type) or values.dim() != 2
    if use_torch or bias is None:
        return F.linear(values, weight, bias)
    result: Tensor = _MemberLinear.apply(values, weight, bias)
    return result


class _MemberLinear(torch.autograd.Function):
    """One row: values (batch, inputs), weight (outputs, inputs), bias (outputs,)."""

    @staticmethod
    def forward(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(values, weight, bias)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        context.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, weight = context.saved_tensors
        return gradient @ weight, gradient.T @ values, gradient.sum(0)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], values: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, int]:
        rows = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((values, weight, bias), dims, strict=True)
        ]
        return _BatchedLinear.apply(*rows), 0


class _BatchedLinear(torch.autograd.Function):
    """All rows: values (rows, batch, inputs), weight (rows, outputs, inputs), bias (rows, outputs)."""

    @staticmethod
    def forward(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), values, weight.mT)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        context.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values, weight = context.saved_tensors
        needs_grad = context.needs_input_grad
        return (
            torch.bmm(gradient, weight) if needs_grad[0] else None,
            torch.bmm(gradient.mT, values) if needs_grad[1] else None,
            gradient.sum(1) if needs_grad[2] else None,
        )
