"""Experiments in unsupervised and generative learning, from one command line."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genexp.api.runs import compare as compare
    from genexp.api.runs import load_run as load_run
    from genexp.api.runs import run as run
    from genexp.api.runs import run_sweep as run_sweep
    from genexp.data.dataset import Dataset as Dataset
    from genexp.data.dataset import LazyStream as LazyStream
    from genexp.data.dataset import Split as Split
    from genexp.data.registry import register_dataset as register_dataset
    from genexp.losses import register_loss as register_loss
    from genexp.metrics import register_metric as register_metric
    from genexp.networks import register_network as register_network
    from genexp.recorders import register_recorder as register_recorder
    from genexp.recorders.recorder import Recorder as Recorder
    from genexp.technique import ClosedFormPhase as ClosedFormPhase
    from genexp.technique import GradientPhase as GradientPhase
    from genexp.technique import Technique as Technique
    from genexp.technique import detach_metrics as detach_metrics
    from genexp.technique import register_technique as register_technique

__version__ = "0.1.0"

# Public names, imported when they are first used: importing torch takes over a second.
_MODULES = {
    **dict.fromkeys(("run", "run_sweep", "load_run", "compare"), "genexp.api.runs"),
    "Technique": "genexp.technique",
    "GradientPhase": "genexp.technique",
    "ClosedFormPhase": "genexp.technique",
    "detach_metrics": "genexp.technique",
    "register_technique": "genexp.technique",
    **dict.fromkeys(("Dataset", "LazyStream", "Split"), "genexp.data.dataset"),
    "register_dataset": "genexp.data.registry",
    "register_loss": "genexp.losses",
    "register_network": "genexp.networks",
    "register_metric": "genexp.metrics",
    "Recorder": "genexp.recorders.recorder",
    "register_recorder": "genexp.recorders",
}

# OpenMP threads spin while they wait for each other, by default for milliseconds. Beside another busy process they
# spin for a thread that is not scheduled, and a small network takes ten times as long. On idle cores this short
# spin is enough. The variable is read when torch is imported, so it is set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    """Return a public name. Raises AttributeError."""
    if name not in _MODULES:
        raise AttributeError(f"module 'genexp' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the names of this module, also those that are not imported yet."""
    return sorted({*globals(), *_MODULES})
