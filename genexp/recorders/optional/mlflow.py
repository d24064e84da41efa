"""Recorder of an MLflow run, for `recorders.mlflow=true`."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genexp.errors import ConfigError, DataError
from genexp.recorders import register_recorder
from genexp.recorders.pil_images import to_pil_image
from genexp.recorders.recorder import Recorder, format_error
from genexp.run_dir.files import read_json, write_json
from genexp.run_dir.paths import MLFLOW_FILE
from genexp.run_dir.record import flatten_config
from genexp.snapshot import RunInfo, RunOutcome, Snapshot

MAX_METRICS, MAX_PARAMETERS, MAX_PARAMETER_LENGTH = 1000, 100, 500  # limits of a request to MLflow
CONNECT_TIMEOUT_SECONDS = 10
STATES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@register_recorder("mlflow")
class MlflowRecorder(Recorder):
    """Recorder of configuration, metrics of each step and previews in a run of MLflow.

    `mlflow.json` in the run directory keeps its identifier: a resumed run continues the same run.
    """

    packages = ("mlflow",)

    def __init__(self, tracking_uri: str = "", experiment: str = "genexp") -> None:
        """Set the server or folder, by default $MLFLOW_TRACKING_URI or that of MLflow, and the experiment."""
        self._tracking_uri, self._experiment = tracking_uri, experiment

    def open(self, run: RunInfo) -> None:
        """Start the run, or continue it if it is resumed. Raises ConfigError."""
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        _check_store(self._tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each table of a new database
        self._run, self._metric_type = run, Metric
        self._last_steps: dict[str, int] = {}  # metric → last step that MLflow has from before the run was resumed
        path = run.run_dir / MLFLOW_FILE
        try:
            self._client: Any = MlflowClient(self._tracking_uri or None)
            if run.completed_steps and path.is_file():
                self._id = str(read_json(path).get("id"))
                self._client.update_run(self._id, status="RUNNING")
            else:
                self._id = self._create_run(run)
                write_json(path, {"id": self._id})
        except DataError:
            raise
        except Exception as error:
            reason = format_error(error).splitlines()[0].split(". ")[0]
            raise ConfigError(
                f"recorders.mlflow: not started ({reason}). Check recorders.mlflow.tracking_uri and the server."
            ) from error

    def _create_run(self, run: RunInfo) -> str:
        """Create the run with the configuration as its parameters, and return its identifier."""
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(self._experiment)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        )
        tags = {f"tag.{tag}": "true" for tag in run.config.get("tags", ())}
        tags |= {"mlflow.note.content": str(run.config.get("notes", "")), "run_dir": str(run.run_dir)}
        run_id = str(self._client.create_run(experiment_id, run_name=run.run_dir.name, tags=tags).info.run_id)
        parameters = [Param(key, str(value)[:MAX_PARAMETER_LENGTH]) for key, value in flatten_config(run.config)]
        for start in range(0, len(parameters), MAX_PARAMETERS):
            self._client.log_batch(run_id, params=parameters[start : start + MAX_PARAMETERS])
        return run_id

    def record(self, snapshot: Snapshot) -> None:
        """Log the metrics of a snapshot, and its images."""
        step, now = snapshot.clock.step, int(1000 * time.time())
        metrics = [
            self._metric_type(f"train/{name}", value, now, row_step)
            for name, curve in snapshot.train_curves.items()
            for row_step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
            if row_step > self._find_last_step(f"train/{name}")
        ]
        if not self._run.is_recorded(step):
            metrics += [
                self._metric_type(f"test/{name}", value, now, step)
                for name, value in snapshot.test_metrics.items()
                if step > self._find_last_step(f"test/{name}")
            ]
            for name, pixels in snapshot.preview_images.items():
                image = to_pil_image(pixels)
                self._client.log_image(self._id, image, artifact_file=f"previews/{name}/{step:08d}.png")
        for start in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MAX_METRICS])

    def close(self, outcome: RunOutcome) -> None:
        """Set the final state of the run."""
        self._client.set_terminated(self._id, STATES[outcome.state])

    def _find_last_step(self, name: str) -> int:
        """Return the last step of a metric that MLflow had when the run was resumed, which it would have twice."""
        if not self._run.completed_steps:
            return 0
        if name not in self._last_steps:
            history = self._client.get_metric_history(self._id, name)
            self._last_steps[name] = max((metric.step for metric in history), default=0)
        return self._last_steps[name]


def _check_store(uri: str) -> None:
    """Raise ConfigError if a server does not answer, or the directory of a SQLite database is not writable.

    MLflow itself would retry for minutes. Other stores are not checked.
    """
    url, reason = urlsplit(uri), None
    try:
        if url.scheme in ("http", "https"):
            port = url.port or {"http": 80, "https": 443}[url.scheme]
            socket.create_connection((url.hostname or "", port), CONNECT_TIMEOUT_SECONDS).close()
        elif url.scheme == "sqlite" and url.path:
            directory = Path(url.path.removeprefix("/")).parent  # sqlite:///relative or sqlite:////absolute
            reason = None if os.access(directory, os.W_OK) else f"{directory} is not a writable directory"
    except (OSError, ValueError) as error:
        reason = f"no connection ({error})"
    if reason:
        raise ConfigError(
            f"recorders.mlflow.tracking_uri={uri}: {reason}. Check the server, or use another store."
        )
