"""Regression losses by name: (prediction, target), tensors of one shape → scalar, averaged over all elements."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genexp.losses import LOSSES, register_loss

REGRESSION_LOSSES = LOSSES["regression"]
CONTENT_LOSSES = LOSSES["content"]


@register_loss("mse", kind="regression")
@register_loss("mse", kind="content")
def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of tensors of one shape: a scalar."""
    return F.mse_loss(prediction, target)


@register_loss("l1", kind="regression")
@register_loss("l1", kind="content")
def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of tensors of one shape: a scalar."""
    return F.l1_loss(prediction, target)


@register_loss("huber", kind="regression")
def huber_error(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Return the mean Huber loss (Huber 1964) of tensors of one shape: a scalar.

    The loss of an element is half the squared error up to an error of `delta`, and linear above.
    """
    return F.huber_loss(prediction, target, delta=delta)
