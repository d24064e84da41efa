"""The loss of a part of the batch, such that the parts' mean is what one process would compute of the whole.

Techniques are written for a batch and know of no parts. While a part's loss is computed, random numbers are
therefore drawn for the whole batch, of which the part's rows are kept, and batch normalization takes its
statistics from the whole batch.
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

# Functions that draw numbers of a shape given, and those that draw as many as their argument has.
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


def build_distributed_loss(phase: GradientPhase, shard: Shard, *, sync_batch_norm: bool) -> LossFunction:
    """Return the loss of `phase` for the `part` of the batch that is here.

    Gradients are averaged over all parts while they are computed. `synchronized` is the technique's.
    """
    loss: LossFunction = DistributedDataParallel(
        _LossModule(phase, shard, sync_batch_norm), find_unused_parameters=True
    )
    return loss


class _LossModule(nn.Module):
    """A phase's loss as the forward pass of its learner, which is what DistributedDataParallel wraps."""

    def __init__(self, phase: GradientPhase, shard: Shard, sync_batch_norm: bool) -> None:
        super().__init__()
        # Not the learner: its buffers are equal everywhere by themselves, and would be sent at each step.
        self.weights = nn.ParameterList(weight for weight in phase.module.parameters() if weight.requires_grad)
        # Some losses leave weights out for a while. Where none is, torch warns that it looked for some in vain.
        self.unused_parameter = nn.Parameter(torch.zeros((), device=self.weights[0].device))
        self._loss, self._shard, self._sync_batch_norm = phase.loss, shard, sync_batch_norm

    def forward(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss of the part, and metrics of it."""
        local_batch_size = len(next(iter(batch.values())))
        with shard_context(self._shard), GlobalBatchMode(self._shard, local_batch_size, self._sync_batch_norm):
            return self._loss(batch, clock)


class GlobalBatchMode(TorchFunctionMode):
    """Computes what depends on the whole batch as if it were here.

    A draw with a row for each sample is made for all of the batch. Any other is left as it is: the generators are
    seeded alike, and so it is the same in all processes.
    """

    def __init__(self, shard: Shard, local_batch_size: int, sync_batch_norm: bool) -> None:
        super().__init__()
        self._shard, self._local_batch_size, self._sync_batch_norm = shard, local_batch_size, sync_batch_norm

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if function in RANDOM_BY_SHAPE:
            return self._draw_by_shape(function, args, options)
        if function in RANDOM_BY_INPUT:
            return self._draw_by_input(function, args, options)
        if function in RANDOM_IN_PLACE:
            return self._draw_in_place(function, args, options)
        if function is F.batch_norm and self._sync_batch_norm:
            return _global_batch_norm(*args, **options)
        return function(*args, **options)

    def _draw_by_shape(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        leading_args, shape = _split_shape_argument(function, args, options)
        if not shape or shape[0] != self._local_batch_size:
            return function(*args, **options)
        options.pop("size", None)
        global_draw = function(*leading_args, (self._local_batch_size * self._shard.count, *shape[1:]), **options)
        return self._select_local_rows(global_draw)

    def _draw_by_input(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        tensor_args = [value for value in (*args, *options.values()) if isinstance(value, Tensor)]
        if not tensor_args:  # torch.normal(0, 1, shape)
            return self._draw_by_shape(function, args, options)
        if not any(self._is_batched(value) for value in tensor_args):
            return function(*args, **options)
        global_draw = function(
            *map(self._expand_to_global_batch, args),
            **{key: self._expand_to_global_batch(value) for key, value in options.items()},
        )
        return self._select_local_rows(global_draw)

    def _draw_in_place(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        target, *other_args = args
        if not self._is_batched(target):
            return function(*args, **options)
        global_draw = function(
            self._expand_to_global_batch(target), *map(self._expand_to_global_batch, other_args), **options
        )
        return target.copy_(self._select_local_rows(global_draw))

    def _is_batched(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self._local_batch_size

    def _expand_to_global_batch(self, value: Any) -> Any:
        """Return the part's rows in their place among those of the whole batch, whose values do not matter."""
        # Not by repeat(), which forgets how numbers lie (channels last, say): they are drawn in that order.
        return torch.cat([value] * self._shard.count) if self._is_batched(value) else value

    def _select_local_rows(self, global_draw: Tensor) -> Tensor:
        return global_draw[self._shard.row_slice(len(global_draw))]


def _split_shape_argument(
    function: Any, args: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[list[Any], tuple[int, ...]]:
    """Return what stands before the shape among the arguments of a draw, and the shape."""
    if "size" in options:
        return list(args), tuple(options["size"])
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
    """Return what `F.batch_norm` would for the part's rows if it saw the whole batch (rows, channels, ...)."""
    if not training:
        return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    features = promote_to_float32(values).unflatten(1, (-1, 1)).flatten(2)  # (rows, channels, places)
    mean = batch_mean(features.mean(2))
    centered = features - mean[:, None]
    variance = batch_mean(centered.square().mean(2))
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            count = features[:, 0].numel() * current_shard().count  # samples of each channel
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var), momentum)
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    normalized = centered * scale[:, None] if bias is None else centered * scale[:, None] + bias[:, None]
    # They lie as F.batch_norm leaves them: a dropout behind it draws in that order.
    return torch.empty_like(values).copy_(normalized.reshape(values.shape))
