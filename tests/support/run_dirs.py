"""Synthetic run directories with the files that comparisons read."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

RUN_CONFIG: dict[str, Any] = {
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
RUN_STEPS = 40


def override_config(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with values replaced at dotted keys."""
    content = copy.deepcopy(dict(config))
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = content
        for group in groups:
            node = node[group]
        node[last] = value
    return content


def make_run_dir(
    run_dir: Path,
    test_metrics: Mapping[str, float | None] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    steps: int = RUN_STEPS,
    **status: Any,
) -> Path:
    """Write the directory of a run that ended with `test_metrics`. `status` overrides keys of status.json."""
    run_dir.mkdir(parents=True)
    config = override_config(RUN_CONFIG, overrides or {})
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    scores = {"mse": 0.1, "psnr": 10.0} if test_metrics is None else dict(test_metrics)
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
    (run_dir / "status.json").write_text(json.dumps(content), encoding="utf-8")
    lines = []
    for step in range(1, steps + 1):
        position = {"step": step, "epoch": 1 + 2 * (step - 1) // steps}
        lines.append({**position, "split": "train", "loss": math.exp(-step / steps) + 0.01 * math.sin(step)})
        if step in (steps // 2, steps):
            lines.append({**position, "split": "test", **scores})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")
    return run_dir
