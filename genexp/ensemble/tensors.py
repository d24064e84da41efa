"""Tensors of several modules as rows of common ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def share(modules: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the modules' parameters and buffers by name, each as (rows, ...), of which theirs become the rows.

    From then on what changes the common tensors in place changes the modules, and the other way round.
    """
    parameters = [dict(module.named_parameters()) for module in modules]
    buffers = [dict(module.named_buffers()) for module in modules]
    return _shared(parameters), _shared(buffers)


def _shared(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    common = {}
    for name in rows[0] if rows else ():
        common[name] = torch.stack([row[name].detach() for row in rows])
        for row, part in zip(rows, common[name].unbind(), strict=True):
            row[name].data = part
    return common
