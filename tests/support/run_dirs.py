"""Run folders made by hand: what comparisons read, without a run."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "dataset": {"name": "mnist_5k", "limit": None, "resident_gb": 4.0},
    "optimizer": {"name": "adam", "lr": 1e-3, "betas": [0.9, 0.999]},
    "trainer": {"epochs": 2, "objective": "mse", "direction": "min"},
    "device": {"name": "cpu", "threads": 1},
    "model": {"name": "stacked_autoencoder", "latent": 32, "recipe": {"lr": 1e-3}},
    "seed": 0,
    "resume": None,
    "tags": [],
    "notes": "",
}
STEPS = 40


def changed(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with other values at dotted keys."""
    content = copy.deepcopy(dict(config))
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = content
        for group in groups:
            node = node[group]
        node[last] = value
    return content


def make_run(
    folder: Path,
    test: Mapping[str, float | None] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    **status: Any,
) -> Path:
    """Write the folder of a run that ended with scores `test`; `status` overrides what its status.json says."""
    folder.mkdir(parents=True)
    config = changed(CONFIG, settings or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    scores = {"mse": 0.1, "psnr": 10.0} if test is None else dict(test)
    objective = scores.get(config["trainer"]["objective"])
    content = {
        "state": "finished",
        "model": config["model"]["name"],
        "dataset": config["dataset"]["name"],
        "step": steps,
        "total_steps": steps,
        "epoch": 2,
        "train": {"loss": 0.2},
        "test": scores,
        "best": None if objective is None else {"value": objective, "step": steps},
        "warnings": [],
        "error": None,
        "started": "2026-01-01T00:00:00+00:00",
        "updated": "2026-01-01T00:01:30+00:00",
        "environment": {"device": "cpu (1 thread)", "torch": "2.13.0", "git_commit": "a" * 40},
        **status,
    }
    (folder / "status.json").write_text(json.dumps(content), encoding="utf-8")
    lines = []
    for step in range(1, steps + 1):
        place = {"step": step, "epoch": 1 + 2 * (step - 1) // steps}
        lines.append({**place, "split": "train", "loss": math.exp(-step / steps) + 0.01 * math.sin(step)})
        if step in (steps // 2, steps):
            lines.append({**place, "split": "test", **scores})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder
