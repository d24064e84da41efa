"""Whole steps as CUDA graphs: small kernels launched as one, where a step mostly waits for launches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch

from genexp.technique import Batch, Clock, Metrics

WARMUP_STEPS = 3  # steps that are done as they are before one is recorded: torch allocates and tunes in them
StepFunction = Callable[[Batch, Clock], Metrics]

log = logging.getLogger(__name__)


class StepGraph(Protocol):
    """Work that is recorded once and can be done again at one command, on the same memory."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Do the work as it is, where it will be recorded."""
        ...

    def capture(self, function: Callable[[], None]) -> None:
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

    def warm_up(self, function: Callable[[], None]) -> None:
        """Do the work on the stream of the graph."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> None:
        """Capture the work."""
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, stream=self._stream):
            function()

    def replay(self) -> None:
        """Launch the graph."""
        with torch.cuda.device(self._device):
            self._graph.replay()


def get_graph_factory(device: torch.device) -> Callable[[], StepGraph] | None:
    """Return what makes graphs for `device`, or None where there are none."""
    return (lambda: CudaGraph(device)) if device.type == "cuda" else None


class _TrackingClock(Clock):
    """A clock that notes whether anyone asked it for the step."""

    is_step_read: bool

    def __getattribute__(self, name: str) -> Any:
        if name == "step":
            object.__setattr__(self, "is_step_read", True)
        return super().__getattribute__(name)


class CapturedStep:
    """A step that is done as it is a few times, then recorded, and replayed from there on.

    A graph repeats what it was recorded with: a number that a step takes from the clock, or draws on the
    processor, would stay what it was. Such a step is noticed and done as it is for good, and so is one that CUDA
    cannot record (one that looks at a value, or brings something from the processor).
    """

    def __init__(self, step_function: StepFunction, graph: StepGraph) -> None:
        self._step_function, self._graph = step_function, graph
        self._warmup_count = 0
        self._static_batch: Batch | None = None  # what the graph reads
        self._static_metrics: Metrics = {}  # what it writes
        self._is_eager = False

    def __call__(self, batch: Batch, clock: Clock) -> Metrics:
        """Do the step at `clock`."""
        if self._is_eager:
            return self._step_function(batch, clock)
        if self._warmup_count < WARMUP_STEPS:
            return self._warm_up(batch, clock)
        if self._static_batch is None:
            self._static_batch = self._capture(batch, clock)
        if self._static_batch is None:
            return self._step_function(batch, clock)
        for name, rows in batch.items():
            self._static_batch[name].copy_(rows)
        self._graph.replay()
        # Copies: the next step overwrites what this one wrote.
        return {name: value.clone() for name, value in self._static_metrics.items()}

    def _warm_up(self, batch: Batch, clock: Clock) -> Metrics:
        tracking_clock = _TrackingClock(clock.step, clock.total_steps, clock.steps_per_epoch)
        rng_state = torch.default_generator.get_state()
        metrics: Metrics = {}
        self._graph.warm_up(lambda: metrics.update(self._step_function(batch, tracking_clock)))
        self._warmup_count += 1
        if vars(tracking_clock).get("is_step_read"):
            self._fall_back_to_eager("the loss depends on the step")
        elif not torch.equal(rng_state, torch.default_generator.get_state()):
            self._fall_back_to_eager("it draws random numbers on the processor")
        return metrics

    def _capture(self, batch: Batch, clock: Clock) -> Batch | None:
        """Record the step on memory of its own, which is returned; None where that cannot be."""
        static_batch = {name: rows.clone() for name, rows in batch.items()}
        try:
            self._graph.capture(lambda: self._static_metrics.update(self._step_function(static_batch, clock)))
        except RuntimeError as error:
            self._fall_back_to_eager(
                f"CUDA cannot record it ({next(iter(str(error).splitlines()), type(error).__name__)})"
            )
            return None
        return static_batch

    def _fall_back_to_eager(self, reason: str) -> None:
        self._is_eager = True
        log.warning("trainer.capture=true: a step is done as it is, since %s", reason)
