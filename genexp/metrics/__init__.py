"""Metrics. weights/ holds the classifiers whose features compare generated images with real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from genexp.registry import Registry

MetricT = TypeVar("MetricT", bound=Callable[..., Any])

# Functions (technique, test batches) → float. An evaluation also computes those in `trainer.metrics`.
METRICS: Registry[Any] = Registry("metric", key="trainer.metrics", group="genexp.metrics", source=None)


def register_metric(name: str) -> Callable[[MetricT], MetricT]:
    """Return a decorator that registers a metric for the key `trainer.metrics`. Raises PluginError."""
    METRICS.check_name(name)

    def register(metric: MetricT) -> MetricT:
        METRICS.register(name, metric)
        return metric

    return register
