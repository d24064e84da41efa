"""Which jobs of a sweep can be one computation, as far as their configurations say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from genexp.runs.build import technique_config
from genexp.runs.resume import flatten
from genexp.sweep.job import Job
from genexp.sweep.manifest import BESIDE, plain
from genexp.training.optimizers import is_elementwise

NUMBER = "a number"  # stands for any float


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return jobs that differ in seeds and numbers only, together; those of equal optimizers are neighbours."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(json.dumps([job.until_epoch, _form(job)], sort_keys=True), []).append(job)
    return [sorted(group, key=_rates) for group in found.values()]


def obstacle(group: Sequence[Job]) -> str | None:
    """Return why a group cannot be one computation, or None where that is not known."""
    config = plain(group[0].config)
    name, processes = config["optimizer"]["name"], config["device"]["processes"]
    if processes > 1:
        return f"device.processes={processes} divides each run by itself"
    return None if is_elementwise(name) else f"a step of optimizer={name} depends on all weights of a run"


def differences(alone: Sequence[Sequence[Job]]) -> str:
    """Return the keys, apart from seeds and numbers, in which groups differ."""
    forms = [dict(flatten(_form(group[0]))) for group in alone]
    keys = sorted({key for form in forms for key in form})
    return ", ".join(key for key in keys if len({json.dumps(form.get(key)) for form in forms}) > 1)


def _form(job: Job) -> dict[str, Any]:
    """Return a job's configuration without what may differ between rows."""
    form = {key: value for key, value in plain(job.config).items() if key not in (*BESIDE, "seed")}
    _, settings = technique_config(form["model"])
    numbers = {field.name for field in fields(settings) if isinstance(getattr(settings, field.name), float)}
    model = {key: NUMBER if key in numbers else value for key, value in form["model"].items() if key != "recipe"}
    return {**form, "model": model, "optimizer": {"name": form["optimizer"]["name"]}}


def _rates(job: Job) -> str:
    return json.dumps(plain(job.config)["optimizer"], sort_keys=True)
