"""Layers that learn nothing, and therefore keep less of what passes through them than torch's do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class FrozenConv2d(nn.Conv2d):
    """A convolution whose filters have no gradient. It forgets its input, which torch's keeps for theirs."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, outputs, height, width) of images (batch, inputs, height, width)."""
        return torch.as_tensor(_FrozenConv2dFunction.apply(images, self.weight, self.bias, self._get_conv_args()))

    def _get_conv_args(self) -> tuple[Any, ...]:
        assert self.padding_mode == "zeros", "images are padded with zeros only"
        return self.stride, self.padding, self.dilation, self.groups


class _FrozenConv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor | None, conv_args: tuple[Any, ...]) -> Tensor:
        return F.conv2d(images, weight, bias, *conv_args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, weight, _, ctx.how = inputs
        ctx.size = images.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors  # in autocast the gradient may be of another type
        input_gradient = conv2d_input(ctx.size, weight.to(gradient.dtype), gradient, *ctx.how)
        return input_gradient, None, None, None
