"""Recorder of a Weights & Biases run, for `recorders.wandb=true`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genexp.errors import ConfigError
from genexp.recorders import register_recorder
from genexp.recorders.pil_images import to_pil_image
from genexp.recorders.recorder import Recorder, format_error
from genexp.run_dir.files import read_json, write_json
from genexp.run_dir.paths import WANDB_FILE
from genexp.snapshot import RunInfo, RunOutcome, Snapshot, iter_step_rows

ID_DIGITS = 12
MODES = ("online", "offline", "disabled", "shared")  # of wandb.init


@register_recorder("wandb")
class WandbRecorder(Recorder):
    """Recorder of configuration, metrics of each step, previews and gallery in a run of Weights & Biases.

    `wandb.json` in the run directory keeps its identifier: a resumed run continues the same run. W&B ignores the
    steps that it has already. With WANDB_MODE=offline, all stays in the run directory until `wandb sync`.
    """

    packages = ("wandb",)

    def __init__(self, project: str = "genexp", entity: str = "", group: str = "", mode: str = "") -> None:
        """Set the names of project, entity and group. An empty value selects that of W&B's own settings.

        Raises ConfigError for an unknown mode.
        """
        if mode and mode not in MODES:
            raise ConfigError(f"recorders.wandb.mode={mode}: must be one of {', '.join(MODES)}.")
        self._project, self._entity, self._group, self._mode = project, entity, group, mode

    def open(self, run: RunInfo) -> None:
        """Start the run, or continue it if it is resumed. Raises ConfigError."""
        import wandb

        self._run, self._image_type = run, wandb.Image
        path = run.run_dir / WANDB_FILE
        if not run.completed_steps or not path.is_file():
            write_json(path, {"id": uuid.uuid4().hex[:ID_DIGITS]})
        try:
            self._wandb_run: Any = wandb.init(
                id=str(read_json(path).get("id")),
                project=self._project,
                entity=self._entity or None,
                group=self._group or None,
                mode=self._mode or None,
                name=run.run_dir.name,
                config=dict(run.config),
                tags=[str(tag) for tag in run.config.get("tags", ())],
                notes=str(run.config.get("notes", "")),
                dir=run.run_dir,
                resume="allow",
                reinit="create_new",  # the runs of an ensemble are open at the same time
                settings=wandb.Settings(console="off", symlink=False),
            )
        except Exception as error:
            raise ConfigError(
                f"recorders.wandb: not started ({format_error(error).splitlines()[0]}). "
                f"Check its options, use `wandb login`, or WANDB_MODE=offline."
            ) from error
        self._wandb_run.config.update({"run_dir": str(run.run_dir)}, allow_val_change=True)

    def record(self, snapshot: Snapshot) -> None:
        """Log the rows of a snapshot, and its images."""
        step, rows = snapshot.clock.step, snapshot.train_curves
        values = {name: curve.values.tolist() for name, curve in rows.items()}
        for row_step, names, cells in iter_step_rows(rows, values):
            metrics = {f"train/{name}": value for name, value in zip(names, cells, strict=True)}
            self._log({"epoch": -(-row_step // self._run.steps_per_epoch), **metrics}, row_step)
        if self._run.is_recorded(step):
            return
        self._log({f"test/{name}": value for name, value in snapshot.test_metrics.items()}, step)
        self._log_images("preview", snapshot.preview_images, step)
        if snapshot.final_artifacts is not None and snapshot.is_complete:
            self._log_images("gallery", snapshot.final_artifacts.gallery, step)

    def close(self, outcome: RunOutcome) -> None:
        """Finish the run. It is marked as failed if it failed."""
        self._wandb_run.summary["state"] = outcome.state
        self._wandb_run.finish(exit_code=int(outcome.state == "failed"))

    def _log_images(self, prefix: str, images: Mapping[str, Tensor], step: int) -> None:
        """Log still images: name → uint8 (channels, height, width). Others are animations."""
        stills = {name: pixels for name, pixels in images.items() if pixels.ndim == 3}
        self._log(
            {f"{prefix}/{name}": self._image_type(to_pil_image(pixels)) for name, pixels in stills.items()}, step
        )

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if values:
            self._wandb_run.log(dict(values), step=step)
