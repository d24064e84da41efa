"""Optimizer of one phase for all members: an element-wise torch optimizer on stacked parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from genexp.technique import Clock
from genexp.training.optimizers import OptimizerConfig, build_joint_optimizer, learning_rate


class EnsembleOptimizer:
    """Torch optimizer of all members. Adjacent members with equal settings share one parameter group.

    The separate optimizer of each member makes no steps. `update_members` writes the state of a member to its
    separate optimizer. Checkpoints are saved from these optimizers, and a later EnsembleOptimizer starts from
    their states.
    """

    def __init__(
        self,
        configs: Sequence[OptimizerConfig],
        member_optimizers: Sequence[torch.optim.Optimizer],
        leaves: Mapping[str, Tensor],
        member_parameters: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Build the joint optimizer.

        `configs`, `member_optimizers` and `member_parameters` have one entry per member. `leaves` holds the
        stacked parameters (members, ...) by name.
        """
        self._configs, self._member_optimizers, self._leaves, self._member_parameters = (
            configs,
            member_optimizers,
            leaves,
            member_parameters,
        )
        self._group_member_indices = [
            list(member_indices)
            for _, member_indices in groupby(range(len(configs)), key=lambda member_index: configs[member_index])
        ]
        self._group_slices = [
            {name: leaf.detach()[member_indices[0] : member_indices[-1] + 1] for name, leaf in leaves.items()}
            for member_indices in self._group_member_indices
        ]
        parameter_groups = [list(slices.values()) for slices in self._group_slices]
        self._optimizer = build_joint_optimizer(
            [configs[rows[0]] for rows in self._group_member_indices], parameter_groups
        )
        self._load_member_states()

    def step(self, clock: Clock) -> None:
        """Step all members with the gradients of the leaves and the learning rates of `clock`."""
        for member_indices, slices, group in zip(
            self._group_member_indices, self._group_slices, self._optimizer.param_groups, strict=True
        ):
            group["lr"] = learning_rate(self._configs[member_indices[0]], clock)
            for name, group_parameter in slices.items():
                gradient = self._leaves[name].grad
                group_parameter.grad = (
                    None if gradient is None else gradient[member_indices[0] : member_indices[-1] + 1]
                )
        self._optimizer.step()

    def update_members(self) -> None:
        """Set the state of each member's optimizer to what it would be after the steps of a single run.

        The tensors of this state are views of the state of the joint optimizer.
        """
        for member_indices, slices, group in zip(
            self._group_member_indices, self._group_slices, self._optimizer.param_groups, strict=True
        ):
            for position, member_index in enumerate(member_indices):
                for member_group in self._member_optimizers[member_index].param_groups:
                    member_group["lr"] = group["lr"]
                for name, group_parameter in slices.items():
                    if group_parameter in self._optimizer.state:
                        self._member_optimizers[member_index].state[
                            self._member_parameters[member_index][name]
                        ] = {
                            key: _select_member(value, group_parameter, position)
                            for key, value in self._optimizer.state[group_parameter].items()
                        }

    def _load_member_states(self) -> None:
        """Load the states of the separate optimizers of the members."""
        for member_indices, slices in zip(self._group_member_indices, self._group_slices, strict=True):
            for name, group_parameter in slices.items():
                states = [
                    self._member_optimizers[member_index].state.get(self._member_parameters[member_index][name])
                    for member_index in member_indices
                ]
                first = states[0]
                if first:
                    self._optimizer.state[group_parameter] = {
                        key: _stack_states([state[key] for state in states], group_parameter)  # type: ignore[index]
                        for key in first
                    }


def _select_member(value: object, parameter: Tensor, position: int) -> object:
    return value[position] if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _stack_states(values: Sequence[object], parameter: Tensor) -> object:
    """Return the state of all members: per-weight tensors stacked, step counts taken from the first member."""
    first = values[0]
    if isinstance(first, Tensor) and first.shape == parameter.shape[1:]:
        return torch.stack([value for value in values if isinstance(value, Tensor)])
    return first.clone() if isinstance(first, Tensor) else first
