"""Tensors of several modules as rows of common ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def stack_shared_state(modules: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the modules' parameters and buffers by name, each as (rows, ...), of which theirs become the rows.

    From then on what changes the common tensors in place changes the modules, and the other way round.
    """
    parameters = [dict(module.named_parameters()) for module in modules]
    buffers = [dict(module.named_buffers()) for module in modules]
    return _stack_shared(parameters), _stack_shared(buffers)


def _stack_shared(tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    stacked = {}
    for name in tensors[0] if tensors else ():
        stacked[name] = torch.stack([row[name].detach() for row in tensors])
        for row, view in zip(tensors, stacked[name].unbind(), strict=True):
            row[name].data = view
    return stacked
