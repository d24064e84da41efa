"""Whole steps as CUDA graphs: small kernels launched as one, where a step mostly waits for launches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch

from genexp.technique import Batch, Clock, Metrics

WARM_UP = 3  # steps that are done as they are before one is recorded: torch allocates and tunes in them
Work = Callable[[Batch, Clock], Metrics]

log = logging.getLogger(__name__)


class Graph(Protocol):
    """Work that is recorded once and can be done again at one command, on the same memory."""

    def warm(self, work: Callable[[], None]) -> None:
        """Do the work as it is, where it will be recorded."""
        ...

    def record(self, work: Callable[[], None]) -> None:
        """Note what the work does, without doing it."""
        ...

    def replay(self) -> None:
        """Do it."""
        ...


class CudaGraph:
    """A graph of one device. Random numbers in it follow the generator's seed at the time of each replay."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)

    def warm(self, work: Callable[[], None]) -> None:
        """Do the work on the stream of the graph."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> None:
        """Capture the work."""
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, stream=self._stream):
            work()

    def replay(self) -> None:
        """Launch the graph."""
        with torch.cuda.device(self._device):
            self._graph.replay()


def graphs_on(device: torch.device) -> Callable[[], Graph] | None:
    """Return what makes graphs for `device`, or None where there are none."""
    return (lambda: CudaGraph(device)) if device.type == "cuda" else None


class _WatchedClock(Clock):
    """A clock that notes whether anyone asked it for the step."""

    was_read: bool

    def __getattribute__(self, name: str) -> Any:
        if name == "step":
            object.__setattr__(self, "was_read", True)
        return super().__getattribute__(name)


class CapturedStep:
    """A step that is done as it is a few times, then recorded, and replayed from there on.

    A graph repeats what it was recorded with: a number that a step takes from the clock, or draws on the
    processor, would stay what it was. Such a step is noticed and done as it is for good, and so is one that CUDA
    cannot record (one that looks at a value, or brings something from the processor).
    """

    def __init__(self, work: Work, graph: Graph) -> None:
        self._work, self._graph = work, graph
        self._warm = 0
        self._batch: Batch | None = None  # what the graph reads
        self._metrics: Metrics = {}  # what it writes
        self._eager = False

    def __call__(self, batch: Batch, clock: Clock) -> Metrics:
        """Do the step at `clock`."""
        if self._eager:
            return self._work(batch, clock)
        if self._warm < WARM_UP:
            return self._try(batch, clock)
        if self._batch is None:
            self._batch = self._record(batch, clock)
        if self._batch is None:
            return self._work(batch, clock)
        for name, rows in batch.items():
            self._batch[name].copy_(rows)
        self._graph.replay()
        # Copies: the next step overwrites what this one wrote.
        return {name: value.clone() for name, value in self._metrics.items()}

    def _try(self, batch: Batch, clock: Clock) -> Metrics:
        watched = _WatchedClock(clock.step, clock.total_steps, clock.steps_per_epoch)
        before = torch.default_generator.get_state()
        metrics: Metrics = {}
        self._graph.warm(lambda: metrics.update(self._work(batch, watched)))
        self._warm += 1
        if vars(watched).get("was_read"):
            self._refuse("the loss depends on the step")
        elif not torch.equal(before, torch.default_generator.get_state()):
            self._refuse("it draws random numbers on the processor")
        return metrics

    def _record(self, batch: Batch, clock: Clock) -> Batch | None:
        """Record the step on memory of its own, which is returned; None where that cannot be."""
        memory = {name: rows.clone() for name, rows in batch.items()}
        try:
            self._graph.record(lambda: self._metrics.update(self._work(memory, clock)))
        except RuntimeError as error:
            self._refuse(f"CUDA cannot record it ({next(iter(str(error).splitlines()), type(error).__name__)})")
            return None
        return memory

    def _refuse(self, reason: str) -> None:
        self._eager = True
        log.warning("trainer.capture=true: a step is done as it is, since %s", reason)
