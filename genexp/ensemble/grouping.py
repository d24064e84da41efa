"""Which jobs of a sweep can be one computation, as far as their configurations say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from genexp.runs.build import bind_technique_config
from genexp.runs.resume import flatten_items
from genexp.sweep.job import Job
from genexp.sweep.manifest import METADATA_KEYS, to_plain_config
from genexp.training.optimizers import is_elementwise

FLOAT_PLACEHOLDER = "a number"  # stands for any float


def group_jobs(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return jobs that differ in seeds and numbers only, together; those of equal optimizers are neighbors."""
    jobs_by_config: dict[str, list[Job]] = {}
    for job in jobs:
        jobs_by_config.setdefault(json.dumps([job.until_epoch, _fixed_config(job)], sort_keys=True), []).append(
            job
        )
    return [sorted(group, key=_optimizer_key) for group in jobs_by_config.values()]


def find_ensemble_obstacle(group: Sequence[Job]) -> str | None:
    """Return why a group cannot be one computation, or None where that is not known."""
    config = to_plain_config(group[0].config)
    name, processes = config["optimizer"]["name"], config["device"]["processes"]
    if processes > 1:
        return f"device.processes={processes} divides each run by itself"
    return None if is_elementwise(name) else f"a step of optimizer={name} depends on all weights of a run"


def find_differing_keys(groups: Sequence[Sequence[Job]]) -> str:
    """Return the keys, apart from seeds and numbers, in which groups differ."""
    configs = [dict(flatten_items(_fixed_config(group[0]))) for group in groups]
    keys = sorted({key for config in configs for key in config})
    return ", ".join(key for key in keys if len({json.dumps(form.get(key)) for form in configs}) > 1)


def _fixed_config(job: Job) -> dict[str, Any]:
    """Return a job's configuration without what may differ between rows."""
    config = {
        key: value for key, value in to_plain_config(job.config).items() if key not in (*METADATA_KEYS, "seed")
    }
    _, settings = bind_technique_config(config["model"])
    float_names = {field.name for field in fields(settings) if isinstance(getattr(settings, field.name), float)}
    model = {
        key: FLOAT_PLACEHOLDER if key in float_names else value
        for key, value in config["model"].items()
        if key != "recipe"
    }
    return {**config, "model": model, "optimizer": {"name": config["optimizer"]["name"]}}


def _optimizer_key(job: Job) -> str:
    return json.dumps(to_plain_config(job.config)["optimizer"], sort_keys=True)
