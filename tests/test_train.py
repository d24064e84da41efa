"""Command line of `genexp`: handed-over run directories are data, and every error is one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from genexp.cli import compare
from tests.support.command import format_run_dir_override, get_error_line, run_genexp, run_main
from tests.support.run_dirs import RUN_CONFIG, make_run_dir

LOG_FILE_CALL = {"_target_": "logging.FileHandler", "filename": "boom"}
LOGGING = {
    "version": 1,
    "handlers": {"x": {"class": "logging.FileHandler", "filename": "boom"}},
    "root": {"handlers": ["x"]},
}


def read_files(directory: Path) -> dict[str, bytes]:
    """Return relative path → content of all files below `directory`."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a finished run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return make_run_dir(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"hydra": {"callbacks": {"x": LOG_FILE_CALL}}}, "unknown key hydra"),
        ({"hydra": {"job_logging": LOGGING}}, "unknown key hydra"),
        ({"hydra": {"hydra_logging": LOGGING}}, "unknown key hydra"),
        ({"hydra": {"job": {"env_set": {"LD_PRELOAD": "boom.so"}}}}, "unknown key hydra"),
        ({"hydra": {"searchpath": ["file:///tmp"]}}, "unknown key hydra"),
        ({"defaults": [{"override hydra/job_logging": "own"}]}, "unknown key defaults"),
        ({"notes": "${oc.env:HOME}"}, "notes contains an interpolation"),
        (
            {"model": {**RUN_CONFIG["model"], "x": LOG_FILE_CALL}},
            "model.x._target_ has a special meaning in Hydra",
        ),
    ],
)
@pytest.mark.parametrize("command", [["trainer.epochs=3"], ["--cfg", "job", "--resolve"]])
def test_resuming_refuses_more_than_the_keys_of_a_run(
    command: list[str], content: dict, reason: str, run_dir: Path
) -> None:
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**RUN_CONFIG, **content}))
    before = read_files(run_dir)
    line = get_error_line(run_genexp(f"resume={run_dir}", *command), "genexp")
    assert "run/config.yaml: " in line
    assert reason in line
    assert read_files(run_dir) == before
    assert not Path("boom").exists()


def test_resuming_does_not_search_the_run_directory(run_dir: Path) -> None:
    """Hydra would take these files for options of its own groups."""
    for name, content in (("hydra/job_logging/genexp", LOGGING), ("hydra/callbacks/x", {"x": LOG_FILE_CALL})):
        path = run_dir / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(content))
    get_error_line(run_genexp(f"resume={run_dir}", "trainer.epochs=3"), "genexp")
    line = get_error_line(run_genexp(f"resume={run_dir}", "+hydra/callbacks=x"), "genexp")
    assert "cannot change hydra/callbacks=x (was None)" in line  # a key of the run, since there is no such group
    assert not Path("boom").exists()


def test_resuming_refuses_a_linked_configuration(run_dir: Path) -> None:
    (run_dir / "config.yaml").rename(run_dir / "other.yaml")
    (run_dir / "config.yaml").symlink_to("other.yaml")
    assert "config.yaml: " in get_error_line(run_genexp(f"resume={run_dir}", "--cfg", "job"), "genexp")


def test_configuration_of_a_resumed_run_is_the_stored_one_with_overrides(run_dir: Path) -> None:
    result = run_genexp(f"resume={run_dir}", "--cfg", "job", "trainer.epochs=3", "notes=longer")
    assert result.exit_code == 0, result.stderr
    expected = {**RUN_CONFIG, "trainer": {**RUN_CONFIG["trainer"], "epochs": 3}, "notes": "longer"}
    assert yaml.safe_load(result.stdout) == {**expected, "resume": str(run_dir)}


def test_rerun_of_a_pickled_job_is_refused(run_dir: Path) -> None:
    line = get_error_line(run_genexp(f"--experimental-rerun={run_dir}/job.pickle"), "genexp")
    assert "a pickle can execute code" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--absent"], "unrecognized arguments: --absent"),
        (["-m", "--cfg", "job"], "--multirun and --cfg cannot be combined"),
        (["--resolve"], "--resolve: requires --cfg"),
    ],
)
def test_unusable_options_fail_with_one_line(arguments: list[str], message: str) -> None:
    assert message in get_error_line(run_genexp(*arguments), "genexp")


def test_options_may_follow_overrides() -> None:
    result = run_genexp("seed=3", "--cfg", "job", "model=gan", "-p", "seed")
    assert (result.exit_code, result.stdout.strip()) == (0, "3")


def test_completion_ignores_the_flag_of_trusted_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "COMP_LINE", "genexp --trust-config-dir model=vae trainer.epochs")
    result = run_genexp("-sc", "query=bash")
    assert result.stdout.split() == ["trainer.epochs="], result.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "not enough memory (MemoryError). Use a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory:\ntried 8 bytes"), "not enough memory (Default"),
        (RecursionError("maximum depth"), "too deeply nested values"),
        (ValueError("first\nsecond [red]x[/red]"), "unexpected ValueError: first second [red]x[/red] (at "),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "unexpected UnicodeDecodeError: 'utf-8' ",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_unexpected_errors_are_one_line(
    error: Exception, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("genexp.runs.run.run_experiment", fail)
    result = run_genexp(format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"genexp: {line}")
    assert result.stderr.endswith("Set HYDRA_FULL_ERROR=1 to print the traceback.\n")
    assert result.stderr.count("\n") == 1


def test_unexpected_errors_of_tools_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise KeyError("x")

    monkeypatch.setattr(compare, "_run", fail)
    result = run_main("genexp-compare", compare.main)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("genexp-compare: unexpected KeyError: 'x' (at ")


RUN_NAMES = (
    *(".lock", "metrics.jsonl", "status.json", "status.json.tmp", "train.log", "config.yaml", "report.html"),
    *("samples.gif", "figures", "checkpoints", "projector", ".hydra", "figures/loss.png", "checkpoints/best.pt"),
)


@pytest.mark.parametrize("name", RUN_NAMES)
@pytest.mark.parametrize("kind", ["link", "dangling link", "named pipe"])
def test_resuming_refuses_links_and_special_files(kind: str, name: str, run_dir: Path) -> None:
    path, target = run_dir / name, run_dir.parent / "target"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(target)
    elif kind == "link":
        target.write_text("other files")
    if kind == "named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target if kind == "link" else "absent")
    before = read_files(run_dir.parent) if kind != "named pipe" else None
    line = get_error_line(run_genexp(f"resume={run_dir}", "trainer.epochs=3"), "genexp")
    assert f"run/{name}: " in line or "not a run directory" in line
    assert before is None or read_files(run_dir.parent) == before


@pytest.mark.parametrize("name", ["0", "0/figures", "sweep.json", ".stop", "report.html"])
def test_going_on_with_a_sweep_refuses_links(name: str, run_dir: Path) -> None:
    sweep_dir, target = run_dir.parent / "sweep", run_dir.parent / "target"
    (sweep_dir / name).parent.mkdir(parents=True, exist_ok=True)
    target.mkdir()
    (sweep_dir / "sweep.json").write_text("{}")
    if (sweep_dir / name).exists():
        (sweep_dir / name).unlink()
    (sweep_dir / name).symlink_to(target)
    line = get_error_line(run_genexp("-m", f"sweep.resume={sweep_dir}", "seed=0,1"), "genexp")
    assert f"sweep/{name}: a link" in line
    assert not list(target.iterdir())
