"""Random draws under vmap: each ensemble member draws the same numbers as in a single run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genexp.ensemble.compatibility import IncompatibleRunsError, VaryingHyperparameters
from genexp.ensemble.linear import linear
from genexp.networks.dropout import dropout, dropout_mask
from genexp.seeding import derive_seed

FillFunction = Callable[[int, Tensor, torch.Generator], object]  # member index, its tensor, its generator
MaskFunction = Callable[[Tensor, float, torch.Generator], Tensor]  # values, dropout rate, generator → mask


class MemberGenerators:
    """Random generators of one member, one per device type. They replace torch's global generators."""

    def __init__(self) -> None:
        self._seed = 0
        self._by_device_type: dict[str, torch.Generator] = {}

    def seed(self, *parts: int | str) -> None:
        """Seed all generators from `parts`, as `seed_generators` does in a single run."""
        self._seed = derive_seed(*parts)
        for generator in self._by_device_type.values():
            generator.manual_seed(self._seed)

    def get_generator(self, device: torch.device) -> torch.Generator:
        """Return the generator for tensors on `device`."""
        if device.type not in self._by_device_type:
            self._by_device_type[device.type] = torch.Generator(device).manual_seed(self._seed)
        return self._by_device_type[device.type]

    @contextmanager
    def use_as_global(self, device: torch.device) -> Iterator[None]:
        """Copy the generators' states to torch's global generators for the block, and back afterwards."""
        global_generators = {device.type: _get_global_generator(device), "cpu": torch.default_generator}
        for device_type, generator in global_generators.items():
            generator.set_state(self.get_generator(torch.device(device_type)).get_state())
        yield
        for device_type, generator in global_generators.items():
            self.get_generator(torch.device(device_type)).set_state(generator.get_state())


def _get_global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator


class EnsembleFunctionMode(TorchFunctionMode):
    """Torch function mode in which random functions under vmap draw from each member's own generators.

    REPLACEMENTS lists these functions, and other functions that vmap does not support or computes inefficiently.
    vmap rejects every other random function.
    """

    def __init__(
        self, generators: Sequence[MemberGenerators], hyperparameters: VaryingHyperparameters, member_index: Tensor
    ) -> None:
        super().__init__()
        self._generators, self._hyperparameters, self._member_index = generators, hyperparameters, member_index

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = REPLACEMENTS.get(function)
        return (
            function(*args, **(kwargs or {}))
            if replacement is None
            else replacement(self, *args, **(kwargs or {}))
        )

    def draw_per_member(self, shape: Sequence[int], like: Tensor, fill: FillFunction) -> Tensor:
        """Return a tensor of `shape` under vmap, with the dtype and device of `like`.

        `fill` sets the values of each member.
        """

        def draw() -> Tensor:
            stacked = torch.empty(len(self._generators), *shape, dtype=like.dtype, device=like.device)
            for member_index, generators in enumerate(self._generators):
                fill(member_index, stacked[member_index], generators.get_generator(like.device))
            return stacked

        result: Tensor = _DrawOutsideVmap.apply(self._member_index, draw)
        return result

    def dropout(self, values: Tensor, p: float | Tensor, training: bool, make_mask: MaskFunction) -> Tensor:
        """Apply dropout with one mask per member from `make_mask`, which draws the mask of a single run on a CPU.

        `p` is the same for all members, or one of the substituted hyperparameters. Raises IncompatibleRunsError
        for values of shape (batch, channels, height, width) on a CPU.
        """
        rates = self._hyperparameters.get_member_values(p, len(self._generators))
        if not training or not any(rates):
            return values
        if values.dim() == 4 and values.device.type == "cpu":
            # A single run draws in memory order, which is channels last. Under vmap the memory order differs.
            raise IncompatibleRunsError(
                "dropout between convolutions would draw other random numbers than a single run"
            )

        def fill(member_index: int, mask: Tensor, generator: torch.Generator) -> None:
            mask.copy_(make_mask(mask, rates[member_index], generator))

        return values * self.draw_per_member(values.shape, values, fill)


def _torch_dropout_mask(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Return the mask that torch.nn.functional.dropout draws on a CPU, in the shape of `like`."""
    if p in (0, 1):
        return torch.full_like(like, 1 - p)
    return torch.empty_like(like).bernoulli_(1 - p, generator=generator).div_(1 - p)


class _DrawOutsideVmap(torch.autograd.Function):
    """Call of `draw` outside of vmap, which would reject random functions.

    The result of `draw` is (members, ...). Its leading axis becomes the axis of vmap.
    """

    @staticmethod
    def forward(member_index: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        raise AssertionError("rows exist only under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Callable[[], Tensor]], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], member_index: Tensor, draw: Callable[[], Tensor]
    ) -> tuple[Tensor, int]:
        return draw(), 0


def _wrap_sized(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the per-member form of a function that takes a size, for example torch.randn."""

    def draw_sized(mode: EnsembleFunctionMode, *size: Any, **options: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        like = torch.empty(0, dtype=options.get("dtype"), device=options.get("device"))
        return mode.draw_per_member(
            shape, like, lambda member_index, out, generator: _fill_in_place(out, function, shape, generator)
        )

    return draw_sized


def _wrap_like(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the per-member form of torch.randn_like or torch.rand_like.

    `function` is torch.randn or torch.rand.
    """

    def draw_like(mode: EnsembleFunctionMode, values: Tensor, **options: Any) -> Tensor:
        like = torch.empty(
            0, dtype=options.get("dtype", values.dtype), device=options.get("device", values.device)
        )
        shape = values.shape
        return mode.draw_per_member(
            shape, like, lambda member_index, out, generator: _fill_in_place(out, function, shape, generator)
        )

    return draw_like


def _fill_in_place(
    out: Tensor, function: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator
) -> None:
    function(shape, generator=generator, out=out)


def _draw_randint(mode: EnsembleFunctionMode, *bounds: Any, **options: Any) -> Tensor:
    *low_high, size = bounds
    low, high = low_high if len(low_high) == 2 else (0, low_high[0])
    like = torch.empty(0, dtype=options.get("dtype", torch.long), device=options.get("device"))
    return mode.draw_per_member(
        size,
        like,
        lambda member_index, out, generator: torch.randint(low, high, size, generator=generator, out=out),
    )


def _draw_randperm(mode: EnsembleFunctionMode, count: int, **options: Any) -> Tensor:
    like = torch.empty(0, dtype=options.get("dtype", torch.long), device=options.get("device"))
    return mode.draw_per_member(
        (count,), like, lambda member_index, out, generator: torch.randperm(count, generator=generator, out=out)
    )


def _normalize(
    mode: EnsembleFunctionMode,
    values: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,
) -> Tensor:
    """Return torch.nn.functional.normalize. vmap does not support `out`, which spectral normalization passes."""
    result = F.normalize(values, p, dim, eps)
    return result if out is None else out.copy_(result)


def _group_norm(mode: EnsembleFunctionMode, values: Tensor, *args: Any, **options: Any) -> Tensor:
    """Return torch.nn.functional.group_norm. vmap does not support it for values that are channels last."""
    return F.group_norm(values.contiguous(), *args, **options)


class _AffineGrid(torch.autograd.Function):
    """torch.nn.functional.affine_grid, for which vmap has no rule: members and batch become one larger batch.

    The result is not differentiable with respect to `theta`.
    """

    @staticmethod
    def forward(theta: Tensor, size: list[int], align_corners: bool | None) -> Tensor:
        return F.affine_grid(theta, size, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, list[int], bool | None], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], theta: Tensor, size: list[int], align_corners: bool | None
    ) -> tuple[Tensor, int]:
        stacked = theta.movedim(dims[0] or 0, 0)
        grid = F.affine_grid(stacked.flatten(0, 1), [stacked.shape[0] * size[0], *size[1:]], align_corners)
        return grid.unflatten(0, stacked.shape[:2]), 0


def _affine_grid(
    mode: EnsembleFunctionMode, theta: Tensor, size: list[int], align_corners: bool | None = None
) -> Tensor:
    result: Tensor = _AffineGrid.apply(theta, size, align_corners)
    return result


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.randn: _wrap_sized(torch.randn),
    torch.rand: _wrap_sized(torch.rand),
    torch.randn_like: _wrap_like(torch.randn),
    torch.rand_like: _wrap_like(torch.rand),
    torch.randint: _draw_randint,
    torch.randperm: _draw_randperm,
    dropout: lambda mode, values, p, training: mode.dropout(values, p, training, dropout_mask),
    F.dropout: lambda mode, values, p=0.5, training=True, inplace=False: mode.dropout(
        values, p, training, _torch_dropout_mask
    ),
    F.linear: lambda mode, *args, **options: linear(*args, **options),
    F.normalize: _normalize,
    F.group_norm: _group_norm,
    F.affine_grid: _affine_grid,
}
