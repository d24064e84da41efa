"""Names of the files in run and sweep directories, and formatting of paths and commands for messages."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

from genexp.errors import ConfigError

CONFIG_FILE = "config.yaml"
STATUS_FILE = "status.json"
METRICS_TABLE_FILE = "metrics.csv"  # with recorders.csv=true
WANDB_FILE, MLFLOW_FILE = "wandb.json", "mlflow.json"  # with recorders.wandb=true and recorders.mlflow=true
WANDB_DIR = "wandb"
STATUS_RESERVE_FILE = ".status.reserve"  # space for the last status on a full disk
PLUGINS_FILE = "plugins.json"
METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.json"  # written by genexp-evaluate
CHECKPOINTS_DIR = "checkpoints"
BEST_FILE = "best.pt"  # in CHECKPOINTS_DIR
FIGURES_DIR = "figures"
PREVIEWS_DIR = "previews"  # one folder of frames for each animation NAME.gif or NAME.mp4 in the run directory
EVENT_FILE_PREFIX = "events.out.tfevents."  # of TensorBoard's files, directly in the run directory
PROJECTOR_FILE, PROJECTOR_DIR = "projector_config.pbtxt", "projector"  # the file must be beside the events
OLD_EVENTS_DIR = "tensorboard"  # folder of the events in runs of earlier versions
MADE_DIR = "made"  # written by genexp-sample
EXPORT_DIR = "export"  # written by genexp-export, a folder for each format
# In FIGURES_DIR, beside one file for each preview and each image of the gallery.
CURVES_FIGURE, LATENTS_FIGURE, LATENTS_PAGE = "loss.png", "latents.png", "latents.html"
# These two are written by Hydra.
HYDRA_DIR = ".hydra"
LOG_FILE = "train.log"
# One in each run directory and one in each sweep directory.
REPORT_FILE = "report.html"
ASSETS_DIR = ".assets"  # what the pages of a run, or of all jobs of a sweep, share
LOCK_FILE = ".lock"
# In a sweep directory, beside a run directory for each job.
MANIFEST_FILE = "sweep.json"
MULTIRUN_FILE = "multirun.yaml"  # configuration of the sweep
STOP_FILE = ".stop"
STUDY_FILE = "optuna.log"  # journal of an Optuna study
STUDY_LOCK_FILE = "optuna.log.lock"
PRE_MANIFEST_FILES = {MULTIRUN_FILE, LOCK_FILE, STUDY_FILE, STUDY_LOCK_FILE}  # written before the manifest
SUBMITIT_DIR = ".submitit"  # scripts, pickled jobs and logs of submitit
TEMPORARY_SUFFIX = ".tmp"  # of a file that is being written
# Trained techniques of the repository: each is a run directory with configuration, status and best.pt.
GALLERY_PREFIX = "gallery:"
GALLERY_DIR = Path(__file__).resolve().parents[2] / "outputs" / "gallery"

_RUN_NAMES = {
    *(CONFIG_FILE, STATUS_FILE, STATUS_RESERVE_FILE, METRICS_FILE, EVALUATION_FILE, REPORT_FILE),
    *(LOCK_FILE, LOG_FILE, PLUGINS_FILE, METRICS_TABLE_FILE, WANDB_FILE, WANDB_DIR, MLFLOW_FILE),
    *(CHECKPOINTS_DIR, FIGURES_DIR, PREVIEWS_DIR, HYDRA_DIR, MADE_DIR, EXPORT_DIR),
    *(PROJECTOR_FILE, PROJECTOR_DIR, OLD_EVENTS_DIR),
}
_SWEEP_NAMES = {
    *(MANIFEST_FILE, MULTIRUN_FILE, STOP_FILE, STUDY_FILE, STUDY_LOCK_FILE, REPORT_FILE, LOCK_FILE),
    *(SUBMITIT_DIR, ASSETS_DIR),
}


def is_run_name(name: str) -> bool:
    """Return whether a run writes a file or folder with this name into its directory."""
    is_written = name in _RUN_NAMES or name == ASSETS_DIR or name.startswith(EVENT_FILE_PREFIX)
    return is_written or name.endswith((".gif", ".mp4", TEMPORARY_SUFFIX))


def is_sweep_name(name: str) -> bool:
    """Return whether a sweep writes a file or folder with this name into its directory."""
    return name in _SWEEP_NAMES or name.isdecimal() or name.endswith(TEMPORARY_SUFFIX)


def locate_run(text: str) -> Path:
    """Return the directory of a run that `text` names: a path, or `gallery:NAME`.

    Raises ConfigError if the gallery has no such entry, as in an installation without the repository.
    """
    name = text.removeprefix(GALLERY_PREFIX)
    if name == text:
        return Path(text)
    names = sorted(path.parent.name for path in GALLERY_DIR.glob(f"*/{CONFIG_FILE}"))
    if not names:
        raise ConfigError(f"{text}: no trained techniques in {GALLERY_DIR}. Use a clone of the repository.")
    if name not in names:
        raise ConfigError(f"{text}: not in the gallery. Use one of: {', '.join(names)}.")
    return GALLERY_DIR / name


def find_assets_dir(run_dir: Path) -> Path:
    """Return the folder of what the pages of a run share: in the sweep directory of a job, else in `run_dir`."""
    run_dir = run_dir.resolve()
    is_job = (run_dir.parent / MANIFEST_FILE).is_file()
    return (run_dir.parent if is_job else run_dir) / ASSETS_DIR


def find_events_dir(run_dir: Path) -> Path:
    """Return the directory of a run's TensorBoard events: `run_dir`, or its folder OLD_EVENTS_DIR.

    TensorBoard names the run by this directory, such as `vae/2026-…`. Runs of earlier versions have the folder.
    """
    old_dir = run_dir / OLD_EVENTS_DIR
    return old_dir if any(old_dir.glob(f"{EVENT_FILE_PREFIX}*")) else run_dir


def find_animations(directory: Path) -> list[Path]:
    """Return the GIF and MP4 files in `directory`, sorted."""
    return sorted(path for pattern in ("*.gif", "*.mp4") for path in directory.glob(pattern))


def format_path(path: Path) -> str:
    """Return `path` relative to the working directory if it lies below it, else unchanged."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def unquote_value(text: str) -> str:
    """Return the value of an override as Hydra reads it: without quotes around it."""
    quote = text[:1]
    if len(text) < 2 or quote not in ("'", '"') or not text.endswith(quote):
        return text
    value = re.sub(rf"(\\*)\\{quote}", lambda match: match[1][: len(match[1]) // 2] + quote, text[1:-1])
    return re.sub(r"\\+$", lambda match: match[0][: len(match[0]) // 2], value)


def quote_value(text: str) -> str:
    """Return `text` as a quoted value of Hydra's override grammar: `unquote_value` is the inverse."""
    # A backslash counts as an escape only where a quote follows.
    escaped = re.sub(r"(\\*)'", lambda match: 2 * match[1] + "\\'", text)
    escaped = re.sub(r"\\+$", lambda match: 2 * match[0], escaped)
    return f"'{escaped}'"


def format_command(program: str, *arguments: str) -> str:
    """Return a shell command line that runs `program` of this Python environment.

    The program's path is used if its name alone would not find that program on `PATH`.
    """
    env_program = Path(sys.executable).parent / program  # the scripts folder of this Python environment
    program_on_path = shutil.which(program)
    needs_full_path = env_program.is_file() and (program_on_path is None or Path(program_on_path) != env_program)
    return shlex.join([format_path(env_program) if needs_full_path else program, *arguments])
