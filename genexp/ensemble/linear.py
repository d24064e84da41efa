"""Linear layers of an ensemble, with gradients in the memory layout of the weights.

Autograd returns the weight gradient of a batched matrix product transposed. Copying it costs as much as computing
it. The functions below compute it in the layout of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `torch.nn.functional.linear(values, weight, bias)` under vmap.

    For values of shape `(batch, inputs)` with a bias, outside autocast, gradients have the layout of the weights.
    Otherwise they have the layout that torch chooses.
    """
    should_use_torch = torch.is_autocast_enabled(values.device.type) or values.dim() != 2
    if should_use_torch or bias is None:
        return F.linear(values, weight, bias)
    result: Tensor = _MemberLinear.apply(values, weight, bias)
    return result


class _MemberLinear(torch.autograd.Function):
    """Linear layer of one member: values (batch, inputs), weight (outputs, inputs), bias (outputs,)."""

    @staticmethod
    def forward(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(values, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ values, gradient.sum(0)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], values: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, int]:
        stacked = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((values, weight, bias), dims, strict=True)
        ]
        return _EnsembleLinear.apply(*stacked), 0


class _EnsembleLinear(torch.autograd.Function):
    """Linear layer of all members.

    values (members, batch, inputs), weight (members, outputs, inputs), bias (members, outputs).
    """

    @staticmethod
    def forward(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), values, weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values, weight = ctx.saved_tensors
        needs_grad = ctx.needs_input_grad
        return (
            torch.bmm(gradient, weight) if needs_grad[0] else None,
            torch.bmm(gradient.mT, values) if needs_grad[1] else None,
            gradient.sum(1) if needs_grad[2] else None,
        )
