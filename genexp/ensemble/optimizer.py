"""The optimizer of one phase for all rows: torch's own, which works number by number, on common tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from genexp.technique import Clock
from genexp.training.optimizers import OptimizerConfig, build_joint_optimizer, learning_rate


class RowsOptimizer:
    """Steps all rows at once; neighbours of equal settings share a group of torch's optimizer.

    The rows' own optimizers never step. `publish` gives them their part of the state: from it a row's checkpoint
    is made, and it is what another stack of these rows begins with.
    """

    def __init__(
        self,
        configs: Sequence[OptimizerConfig],
        own: Sequence[torch.optim.Optimizer],
        leaves: Mapping[str, Tensor],
        parameters: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Take each row's settings, optimizer and parameters, and the common `leaves` (rows, ...) of these."""
        self._configs, self._own, self._leaves, self._parameters = configs, own, leaves, parameters
        self._spans = [list(rows) for _, rows in groupby(range(len(configs)), key=lambda row: configs[row])]
        self._slices = [
            {name: leaf.detach()[rows[0] : rows[-1] + 1] for name, leaf in leaves.items()} for rows in self._spans
        ]
        groups = [list(slices.values()) for slices in self._slices]
        self._optimizer = build_joint_optimizer([configs[rows[0]] for rows in self._spans], groups)
        self._take()

    def step(self, clock: Clock) -> None:
        """Move all rows along the gradients of the leaves."""
        for rows, slices, group in zip(self._spans, self._slices, self._optimizer.param_groups, strict=True):
            group["lr"] = learning_rate(self._configs[rows[0]], clock)
            for name, part in slices.items():
                gradient = self._leaves[name].grad
                part.grad = None if gradient is None else gradient[rows[0] : rows[-1] + 1]
        self._optimizer.step()

    def publish(self) -> None:
        """Make every row's own optimizer what it would be had it stepped alone."""
        for rows, slices, group in zip(self._spans, self._slices, self._optimizer.param_groups, strict=True):
            for place, row in enumerate(rows):
                for own in self._own[row].param_groups:
                    own["lr"] = group["lr"]
                for name, part in slices.items():
                    if part in self._optimizer.state:
                        self._own[row].state[self._parameters[row][name]] = {
                            key: _row(value, part, place) for key, value in self._optimizer.state[part].items()
                        }

    def _take(self) -> None:
        """Begin with the state of the rows' own optimizers."""
        for rows, slices in zip(self._spans, self._slices, strict=True):
            for name, part in slices.items():
                states = [self._own[row].state.get(self._parameters[row][name]) for row in rows]
                first = states[0]
                if first:
                    self._optimizer.state[part] = {key: _common([s[key] for s in states], part) for key in first}  # type: ignore[index]


def _row(value: object, part: Tensor, place: int) -> object:
    return value[place] if isinstance(value, Tensor) and value.shape == part.shape else value


def _common(values: Sequence[object], part: Tensor) -> object:
    """Return one state of all rows: numbers for each weight as rows, the count of steps as it is in all."""
    first = values[0]
    if isinstance(first, Tensor) and first.shape == part.shape[1:]:
        return torch.stack([value for value in values if isinstance(value, Tensor)])
    return first.clone() if isinstance(first, Tensor) else first
