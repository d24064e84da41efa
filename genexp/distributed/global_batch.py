"""Loss of a shard of the batch, whose mean over all shards equals the loss of the global batch.

The global batch is the batch of a step on a single process. Each rank has one shard of it.

A technique is written for a single process. While a rank computes the loss of its shard, random numbers are drawn
for the global batch, and the rows of the shard are kept. Batch normalization uses statistics of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from genexp.device import promote_to_float32
from genexp.networks.dropout import dropout
from genexp.sharding import Shard, batch_mean, current_shard, shard_context
from genexp.technique import Batch, Clock, GradientPhase, Metrics

LossFunction = Callable[[Batch, Clock], tuple[Tensor, Metrics]]

# Functions that draw random numbers: of a given shape, of the shape of an argument, and in place.
RANDOM_BY_SHAPE = {torch.rand, torch.randn, torch.randint}
RANDOM_BY_INPUT = {
    *(torch.rand_like, torch.randn_like, torch.randint_like, torch.bernoulli, torch.normal, torch.multinomial),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(dropout, F.gumbel_softmax, F.rrelu),
}
RANDOM_IN_PLACE = {
    getattr(Tensor, f"{name}_")
    for name in ("normal", "uniform", "bernoulli", "exponential", "random", "log_normal")
}


def build_distributed_loss(phase: GradientPhase, shard: Shard, *, should_sync_batch_norm: bool) -> LossFunction:
    """Return the loss of `phase` on this rank's `shard` of the batch.

    DistributedDataParallel averages the gradients over all shards during the backward pass. With
    `should_sync_batch_norm`, batch normalization uses the global batch.
    """
    loss: LossFunction = DistributedDataParallel(
        _LossModule(phase, shard, should_sync_batch_norm), find_unused_parameters=True
    )
    return loss


class _LossModule(nn.Module):
    """A phase's loss as the forward pass of a module, as DistributedDataParallel requires."""

    def __init__(self, phase: GradientPhase, shard: Shard, should_sync_batch_norm: bool) -> None:
        super().__init__()
        # Parameters only. The buffers of `phase.module` are equal on all ranks, but DDP would broadcast them.
        self.weights = nn.ParameterList(weight for weight in phase.module.parameters() if weight.requires_grad)
        # Some losses leave parameters unused at times, hence `find_unused_parameters`. With it, torch warns if no
        # parameter is unused. This one always is.
        self.unused_parameter = nn.Parameter(torch.zeros((), device=self.weights[0].device))
        self._loss, self._shard, self._should_sync_batch_norm = phase.loss, shard, should_sync_batch_norm

    def forward(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss and the metrics of this shard, given its rows of the batch."""
        local_batch_size = len(next(iter(batch.values())))
        with (
            shard_context(self._shard),
            GlobalBatchMode(self._shard, local_batch_size, self._should_sync_batch_norm),
        ):
            return self._loss(batch, clock)


class GlobalBatchMode(TorchFunctionMode):
    """Torch function mode in which random draws and batch normalization act on the global batch.

    A draw whose first dimension equals the local batch size is made for the global batch, then reduced to this
    shard's rows. Any other draw is equal on all ranks, because their generators have the same seed.
    """

    def __init__(self, shard: Shard, local_batch_size: int, should_sync_batch_norm: bool) -> None:
        super().__init__()
        self._shard, self._local_batch_size, self._should_sync_batch_norm = (
            shard,
            local_batch_size,
            should_sync_batch_norm,
        )

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        all_kwargs = dict(kwargs or {})
        if function in RANDOM_BY_SHAPE:
            return self._draw_by_shape(function, args, all_kwargs)
        if function in RANDOM_BY_INPUT:
            return self._draw_by_input(function, args, all_kwargs)
        if function in RANDOM_IN_PLACE:
            return self._draw_in_place(function, args, all_kwargs)
        if function is F.batch_norm and self._should_sync_batch_norm:
            return _global_batch_norm(*args, **all_kwargs)
        return function(*args, **all_kwargs)

    def _draw_by_shape(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leading_args, shape = _split_shape_argument(function, args, kwargs)
        if not shape or shape[0] != self._local_batch_size:
            return function(*args, **kwargs)
        kwargs.pop("size", None)
        global_draw = function(*leading_args, (self._local_batch_size * self._shard.count, *shape[1:]), **kwargs)
        return self._select_local_rows(global_draw)

    def _draw_by_input(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor_args = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensor_args:  # torch.normal(0, 1, shape)
            return self._draw_by_shape(function, args, kwargs)
        if not any(self._is_batched(value) for value in tensor_args):
            return function(*args, **kwargs)
        global_draw = function(
            *map(self._expand_to_global_batch, args),
            **{key: self._expand_to_global_batch(value) for key, value in kwargs.items()},
        )
        return self._select_local_rows(global_draw)

    def _draw_in_place(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target, *other_args = args
        if not self._is_batched(target):
            return function(*args, **kwargs)
        global_draw = function(
            self._expand_to_global_batch(target), *map(self._expand_to_global_batch, other_args), **kwargs
        )
        return target.copy_(self._select_local_rows(global_draw))

    def _is_batched(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self._local_batch_size

    def _expand_to_global_batch(self, value: Any) -> Any:
        """Return a batched `value` with as many rows as the global batch: the local rows, once for each shard."""
        # cat() keeps the memory format (e.g. channels last), in whose order numbers are drawn. repeat() does not.
        return torch.cat([value] * self._shard.count) if self._is_batched(value) else value

    def _select_local_rows(self, global_draw: Tensor) -> Tensor:
        return global_draw[self._shard.row_slice(len(global_draw))]


class AccumulationMode(GlobalBatchMode):
    """Torch function mode in which random draws are those of the batch, of which a step takes one part at a time.

    Part i of n has the rows i, i + n, i + 2n, … of the batch. Generators must have the same state before each
    part. Around a `GlobalBatchMode`, with shards divided in the same way, parts do not depend on the number of
    ranks.
    """

    def __init__(self, part: Shard, part_size: int) -> None:
        super().__init__(part, part_size, should_sync_batch_norm=False)

    def _expand_to_global_batch(self, value: Any) -> Any:
        expanded = super()._expand_to_global_batch(value)
        # Each row of the part moves to its place in the batch. The memory format stays that of cat().
        return expanded.copy_(value.repeat_interleave(self._shard.count, 0)) if expanded is not value else value

    def _select_local_rows(self, global_draw: Tensor) -> Tensor:
        return global_draw[self._shard.index :: self._shard.count]


def _split_shape_argument(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Any], tuple[int, ...]]:
    """Return the positional arguments before the shape of a draw, and the shape."""
    if "size" in kwargs:
        return list(args), tuple(kwargs["size"])
    if args and isinstance(args[-1], tuple | list):  # torch.Size is a tuple
        return list(args[:-1]), tuple(args[-1])
    return [], tuple(args) if function is not torch.randint else ()


def _global_batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return `F.batch_norm` of the local rows `values` (rows, channels, ...), with statistics of the global batch.

    Ioffe & Szegedy, "Batch Normalization" (2015). In training it updates the running statistics in place.
    """
    if not training:
        return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    flat_values = promote_to_float32(values).unflatten(1, (-1, 1)).flatten(2)  # (rows, channels, positions)
    mean = batch_mean(flat_values.mean(2))
    centered = flat_values - mean[:, None]
    variance = batch_mean(centered.square().mean(2))
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            count = flat_values[:, 0].numel() * current_shard().count  # elements per channel in the global batch
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var), momentum)
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    normalized = centered * scale[:, None] if bias is None else centered * scale[:, None] + bias[:, None]
    # The memory format is that of F.batch_norm, since a later dropout draws in the order of the memory.
    return torch.empty_like(values).copy_(normalized.reshape(values.shape))
