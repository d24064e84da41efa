"""Randomness row by row: each row of a vectorized computation draws what its run would draw alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from genexp.ensemble.compatibility import Numbers, UnlikeError
from genexp.ensemble.linear import linear
from genexp.networks.dropout import dropout, dropout_mask
from genexp.seeding import seed_for

Fill = Callable[[int, Tensor, torch.Generator], object]  # row, its tensor, its generator
MaskOf = Callable[[Tensor, float, torch.Generator], Tensor]  # of values, with a rate of zeros


class Generators:
    """A row's generators, one for each kind of device that it draws on; torch's global ones in a run alone."""

    def __init__(self) -> None:
        self._seed = 0
        self._drawing: dict[str, torch.Generator] = {}

    def seed(self, *parts: int | str) -> None:
        """Begin a step, as `seed_generators` does for a run alone."""
        self._seed = seed_for(*parts)
        for generator in self._drawing.values():
            generator.manual_seed(self._seed)

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator for tensors on `device`."""
        if device.type not in self._drawing:
            self._drawing[device.type] = torch.Generator(device).manual_seed(self._seed)
        return self._drawing[device.type]

    @contextmanager
    def as_global(self, device: torch.device) -> Iterator[None]:
        """Let torch's global generators draw what these would, while the block runs."""
        kinds = {device.type: _global_generator(device), "cpu": torch.default_generator}
        for kind, generator in kinds.items():
            generator.set_state(self.on(torch.device(kind)).get_state())
        yield
        for kind, generator in kinds.items():
            self.on(torch.device(kind)).set_state(generator.get_state())


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.mps._get_default_mps_generator() if device.type == "mps" else torch.default_generator


class Draws(TorchFunctionMode):
    """While active within a function under vmap, random functions draw for each row from the row's own generators.

    A random function that is not among them is left to vmap, which refuses it.
    """

    def __init__(self, rows: Sequence[Generators], numbers: Numbers, index: Tensor) -> None:
        super().__init__()
        self._rows, self._numbers, self._index = rows, numbers, index

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = OWN.get(function)
        return function(*args, **(kwargs or {})) if own is None else own(self, *args, **(kwargs or {}))

    def each(self, shape: Sequence[int], like: Tensor, fill: Fill) -> Tensor:
        """Return what `fill` writes for each row, in the view that the vmapped function has: `shape`."""

        def draw() -> Tensor:
            drawn = torch.empty(len(self._rows), *shape, dtype=like.dtype, device=like.device)
            for row, generators in enumerate(self._rows):
                fill(row, drawn[row], generators.on(like.device))
            return drawn

        result: Tensor = _Outside.apply(self._index, draw)
        return result

    def dropout(self, values: Tensor, p: float | Tensor, training: bool, mask_of: MaskOf) -> Tensor:
        """Do what dropout by masks of a kind does on a CPU. Raises UnlikeError where rows cannot."""
        rates = self._numbers.values(p, len(self._rows))
        if not training or not any(rates):
            return values
        if values.dim() == 4 and values.device.type == "cpu":
            # A run alone draws there in the order in which numbers lie: channels last, unlike here.
            raise UnlikeError("dropout between convolutions would draw other numbers than in a run alone")

        def fill(row: int, mask: Tensor, generator: torch.Generator) -> None:
            mask.copy_(mask_of(mask, rates[row], generator))

        return values * self.each(values.shape, values, fill)


def _torchs_mask(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Return the mask that torch.nn.functional.dropout draws."""
    if p in (0, 1):
        return torch.full_like(like, 1 - p)
    return torch.empty_like(like).bernoulli_(1 - p, generator=generator).div_(1 - p)


class _Outside(torch.autograd.Function):
    """Calls a function outside of vmap, which would refuse to draw, and takes its result as that of all rows."""

    @staticmethod
    def forward(index: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        raise AssertionError("there are rows under vmap only")

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Callable[[], Tensor]], output: Tensor) -> None:
        context.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], index: Tensor, draw: Callable[[], Tensor]
    ) -> tuple[Tensor, int]:
        return draw(), 0


def _sized(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the row-wise form of torch.randn or its like, which take a size."""

    def draw(draws: Draws, *size: Any, **options: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        like = torch.empty(0, dtype=options.get("dtype"), device=options.get("device"))
        return draws.each(shape, like, lambda row, out, generator: _into(out, function, shape, generator))

    return draw


def _like(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the row-wise form of torch.randn_like or its like; `function` takes a size."""

    def draw(draws: Draws, values: Tensor, **options: Any) -> Tensor:
        like = torch.empty(
            0, dtype=options.get("dtype", values.dtype), device=options.get("device", values.device)
        )
        shape = values.shape
        return draws.each(shape, like, lambda row, out, generator: _into(out, function, shape, generator))

    return draw


def _into(out: Tensor, function: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator) -> None:
    function(shape, generator=generator, out=out)


def _randint(draws: Draws, *bounds: Any, **options: Any) -> Tensor:
    *limits, size = bounds
    low, high = limits if len(limits) == 2 else (0, limits[0])
    like = torch.empty(0, dtype=options.get("dtype", torch.long), device=options.get("device"))
    return draws.each(size, like, lambda row, out, gen: torch.randint(low, high, size, generator=gen, out=out))


def _randperm(draws: Draws, count: int, **options: Any) -> Tensor:
    like = torch.empty(0, dtype=options.get("dtype", torch.long), device=options.get("device"))
    return draws.each((count,), like, lambda row, out, gen: torch.randperm(count, generator=gen, out=out))


def _normalize(
    draws: Draws, values: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """Under vmap there is no `out`; spectral normalisation asks for it."""
    result = F.normalize(values, p, dim, eps)
    return result if out is None else out.copy_(result)


class _Flattened(torch.autograd.Function):
    """torch.nn.functional.affine_grid, for which vmap has no rule: rows of batches are one larger batch."""

    @staticmethod
    def forward(theta: Tensor, size: list[int], align_corners: bool | None) -> Tensor:
        return F.affine_grid(theta, size, align_corners)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, list[int], bool | None], output: Tensor) -> None:
        context.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], theta: Tensor, size: list[int], align_corners: bool | None
    ) -> tuple[Tensor, int]:
        rows = theta.movedim(dims[0] or 0, 0)
        grid = F.affine_grid(rows.flatten(0, 1), [rows.shape[0] * size[0], *size[1:]], align_corners)
        return grid.unflatten(0, rows.shape[:2]), 0


def _affine_grid(draws: Draws, theta: Tensor, size: list[int], align_corners: bool | None = None) -> Tensor:
    result: Tensor = _Flattened.apply(theta, size, align_corners)
    return result


OWN: dict[Any, Callable[..., Tensor]] = {
    torch.randn: _sized(torch.randn),
    torch.rand: _sized(torch.rand),
    torch.randn_like: _like(torch.randn),
    torch.rand_like: _like(torch.rand),
    torch.randint: _randint,
    torch.randperm: _randperm,
    dropout: lambda draws, values, p, training: draws.dropout(values, p, training, dropout_mask),
    F.dropout: lambda draws, values, p=0.5, training=True, inplace=False: draws.dropout(
        values, p, training, _torchs_mask
    ),
    F.linear: lambda draws, *args, **options: linear(*args, **options),
    F.normalize: _normalize,
    F.affine_grid: _affine_grid,
}
