"""The command `genexp`: help, completion, entry points, output and resumption."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from genexp.data import list_datasets
from genexp.technique import list_techniques
from tests.support.command import (
    FIGURES_ON,
    REPO_ROOT,
    format_import_check,
    format_run_dir_override,
    list_file_names,
    load_status,
    read_metrics_log,
    run_genexp,
    start_genexp,
    wait_for,
)
from tests.support.compose import make_tiny_overrides
from tests.support.sweeps import ONE_STEP_RUN_OVERRIDES

GENEXP_EXECUTABLE = Path(sys.executable).parent / "genexp"
ENTRY_POINTS: tuple[tuple[str | Path, ...], ...] = (
    (GENEXP_EXECUTABLE,),
    (sys.executable, "-m", "genexp.train"),
    (sys.executable, REPO_ROOT / "scripts" / "train.py"),
)
CHECK_IMPORTS_SCRIPT = format_import_check(
    "genexp.train", {"torch", "torchvision", "matplotlib", "sklearn", "scipy", "tensorboardX"}
)


def run_subprocess(*command: str | Path, **environment: str) -> str:
    """Run a command in a new process and return its standard output."""
    result = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_help_lists_every_technique_and_dataset_on_one_page() -> None:
    result = run_genexp("--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    unwrapped_lines = re.sub(r",\n +", ", ", result.stdout).splitlines()
    listed = {
        line.partition(":")[0].strip(): re.findall(r"\w+", line.partition(":")[2]) for line in unwrapped_lines
    }
    assert set(list_techniques()) <= set(listed["model"])
    assert set(list_datasets()) <= set(listed["dataset"])
    assert {"vae", "vae_reference"} <= set(listed["experiment"])
    assert "resume=DIR" in result.stdout
    assert "TAB completion" in result.stdout


@pytest.mark.skipif(importlib.util.find_spec("argcomplete") is None, reason="needs the extra completion")
@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("report", "genexp-report --s", ["--single-file "]),
        ("compare", "genexp-compare ru", ["runs/"]),
        ("evaluate", "genexp-evaluate runs --checkpoint ", ["best", "newest"]),
        ("evaluate", "genexp-evaluate runs --inception-", ["--inception-weights "]),
        ("export", "genexp-export runs --format s", ["safetensors "]),
        ("sample", "genexp-sample runs rec", ["reconstructions "]),
    ],
)
def test_tab_completes_the_commands_on_runs(module: str, line: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "rules.txt").touch()
    variables = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_STDOUT_FILENAME": "answer"}
    variables |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    command = [sys.executable, "-m", f"genexp.cli.{module}"]
    subprocess.run(command, env={**os.environ, **variables}, cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "answer").read_text().split("\n") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help"], "genexp experiment=vae"),
        (["--version"], "genexp 0."),
        (["--help", "model=vae"], "model.latent=20"),
        (["--cfg", "job", "model=vae"], "kl_warmup_epochs: 5"),
        (["-sc", "install=bash"], "hydra_bash_completion"),
        (["-sc", "query=bash"], "model=vae"),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) else "",
)
def test_help_config_and_completion_do_not_import_torch(arguments: list[str], message: str) -> None:
    line = "genexp model=v"
    assert message in run_subprocess(
        sys.executable, "-c", CHECK_IMPORTS_SCRIPT, *arguments, COMP_LINE=line, COMP_POINT=str(len(line))
    )


def test_help_and_config_use_less_than_one_second_of_cpu_time() -> None:
    """Measure CPU time, which does not depend on other processes."""
    for arguments in (["--help"], ["--cfg", "job"]):
        before = os.times()
        run_subprocess(GENEXP_EXECUTABLE, *arguments)
        after = os.times()
        assert after.children_user + after.children_system - before.children_user - before.children_system < 1


def test_entry_points_print_the_same_configuration() -> None:
    arguments = ("model=vae", "optimizer=sgd", "--cfg", "job")
    first, *others = (run_subprocess(*entry_point, *arguments) for entry_point in ENTRY_POINTS)
    assert yaml.safe_load(first)["optimizer"]["name"] == "sgd"
    assert others == [first, first]


def test_entry_points_write_identical_runs(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(len(ENTRY_POINTS))]
    for entry_point, folder in zip(ENTRY_POINTS, folders, strict=True):
        run_subprocess(*entry_point, *ONE_STEP_RUN_OVERRIDES, format_run_dir_override(folder))
    first, *others = folders
    assert read_metrics_log(first)
    for folder in others:
        assert read_metrics_log(folder) == read_metrics_log(first)
        assert (folder / "config.yaml").read_bytes() == (first / "config.yaml").read_bytes()
        assert list_file_names(folder) == list_file_names(first)


@pytest.mark.parametrize(
    "entry_point",
    [
        pytest.param(entry_point, marks=[] if entry_point == ENTRY_POINTS[0] else pytest.mark.slow)
        for entry_point in ENTRY_POINTS
    ],
    ids=("command", "module", "script"),
)
def test_every_entry_point_runs_sweeps_and_reports_the_failing_key(
    entry_point: Sequence[str | Path], tmp_path: Path
) -> None:
    arguments = ["-m", *ONE_STEP_RUN_OVERRIDES, "dataset.limit=40,4", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    environment = {**os.environ, "HYDRA_FULL_ERROR": "0"}
    result = subprocess.run(
        [*entry_point, *arguments], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("genexp: 1 of 2 jobs failed. The first is #1 dataset.limit=4: trainer.batch_size=8: ")
    assert {number: load_status(tmp_path / "sweep" / number)["state"] for number in "01"} == {
        "0": "finished",
        "1": "failed",
    }


@pytest.mark.parametrize("script", sorted((REPO_ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_importing_a_script_does_not_start_a_run(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes of a data loader import the script again; each must not start a run."""
    monkeypatch.setattr(sys, "argv", [script.name, "--no-such-option"])
    runpy.run_path(str(script), run_name="__mp_main__")


@pytest.mark.parametrize(
    ("command_line", "completions"),
    [
        ("genexp model=va", ["model=vae"]),
        ("genexp dataset=mnist_", ["dataset=mnist_5k"]),
        ("genexp experiment=vae_r", ["experiment=vae_reference"]),
        ("genexp model=vae trainer.epochs", ["trainer.epochs="]),
        ("genexp optimizer=rmsprop optimizer.al", ["optimizer.alpha="]),
    ],
)
def test_tab_completion(command_line: str, completions: list[str]) -> None:
    words = command_line.split()
    script = f"""
    eval "$(genexp -sc install=bash)"
    COMP_LINE='{command_line}' COMP_POINT={len(command_line)} COMP_CWORD={len(words) - 1}
    COMP_WORDS=({command_line})
    hydra_bash_completion
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{GENEXP_EXECUTABLE.parent}{os.pathsep}{os.environ['PATH']}"
    assert run_subprocess("bash", "-c", script, PATH=path).split() == completions


def test_config_dir_adds_models_and_presets(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "experiment").mkdir()
    narrow = yaml.safe_load((REPO_ROOT / "conf" / "model" / "vae.yaml").read_text()) | {
        "hidden": [8],
        "latent": 2,
    }
    (tmp_path / "model" / "narrow_vae.yaml").write_text(yaml.safe_dump(narrow))
    preset = "# @package _global_\ndefaults:\n  - override /model: narrow_vae\nseed: 5\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(preset)
    option = f"--config-dir={tmp_path}"
    assert "narrow_vae" in run_genexp(option, "--help").stdout
    folder = tmp_path / "run"
    overrides = [word for word in ONE_STEP_RUN_OVERRIDES if not word.startswith("model")]
    result = run_genexp(option, "experiment=mine", *overrides, format_run_dir_override(folder))
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"]["hidden"], config["seed"]) == ([8], 5)
    # The configuration of the run is complete: resuming it does not need the directory.
    assert run_genexp(f"resume={folder}", "trainer.max_steps=2").exit_code == 0


def test_overrides_reach_the_saved_configuration_and_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = "model=vae optimizer=rmsprop optimizer.lr=3e-4 dataset=mnist_5k trainer.epochs=3 device=cpu seed=7"
    result = run_genexp(
        *overrides.split(), "dataset.limit=200", "device.threads=1", format_run_dir_override(folder)
    )
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["name"] == "vae"
    assert (config["optimizer"]["name"], config["optimizer"]["lr"]) == ("rmsprop", 3e-4)
    assert config["dataset"]["name"] == "mnist_5k"
    assert config["device"]["name"] == "cpu"
    assert config["seed"] == 7
    assert config["resume"] is None
    assert "${" not in (folder / "config.yaml").read_text()
    assert [line["step"] for line in read_metrics_log(folder) if line["split"] == "test"] == [2, 4, 6]
    state = load_status(folder)
    assert (state["state"], state["epoch"], state["model"], state["dataset"]) == ("finished", 3, "vae", "mnist_5k")
    assert state["environment"]["device"].startswith("cpu")


def test_output_names_the_next_commands(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run_genexp(
        *make_tiny_overrides("vae"), FIGURES_ON, "trainer.max_steps=1", format_run_dir_override(folder)
    )
    assert result.stderr == ""
    assert f"look     {folder / 'report.html'}" in result.stdout
    assert f"genexp resume={folder} trainer.epochs=" in result.stdout
    assert f"genexp-compare {folder.parent}" in result.stdout
    for name in ("report.html", "samples.gif", "figures", "metrics.jsonl", "train.log"):
        assert (folder / name).exists()


@pytest.mark.parametrize(("full_error", "is_traced"), [("0", False), ("1", True)])
def test_stack_trace_needs_hydra_full_error(full_error: str, is_traced: bool) -> None:
    result = subprocess.run(
        [GENEXP_EXECUTABLE, "model=vea"],
        env={**os.environ, "HYDRA_FULL_ERROR": full_error},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert ("Traceback" in result.stderr) == is_traced
    assert ("genexp: model=vea: unknown name" in result.stderr) != is_traced


def test_several_values_require_multirun() -> None:
    result = run_genexp("seed=range(2)")
    assert result.exit_code == 1
    assert "requires --multirun" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume="], "resume=: must be a directory"),
        (["-m", "resume={run}", "trainer.epochs=9"], "resumes one run. Remove -m"),
        (["resume={run}", "model=gan"], "model=gan: cannot change in a resumed run. Remove it"),
        (["resume={run}", "experiment=vae"], "experiment=vae: cannot change in a resumed run. Remove it"),
        (["resume={run}", "trainer.epoch=9"], "trainer.epoch: not a key in the config.yaml of the run"),
        (["resume={run}", "trainer.epochs=1"], "already finished. Use a larger trainer.epochs"),
        (["resume={run}", "trainer.max_steps=1"], "already finished. Use a larger trainer.epochs"),
        ([*ONE_STEP_RUN_OVERRIDES, "hydra.run.dir='{run}'"], "already contains a run. Use resume="),
        (["~optimizer"], "optimizer: missing. Set optimizer=NAME"),
        (["experiment=null"], "experiment=null: must be a name. Remove it"),
        (["model=1"], "model=1: must be a name. Use model.KEY=VALUE for a single key."),
        (["optimizer={{lr: 1}}"], "optimizer={lr: 1}: must be a name. Use optimizer.KEY=VALUE for a single key."),
        (["hydra/launcher=true"], "hydra/launcher=true: must be a name."),
        (["=1"], "=1: has no key. Use key=value."),
        (["--config-name=other"], "Cannot find primary config 'other'"),
        (["--config-dir=absent"], "not found"),
    ],
)
def test_invalid_commands_fail_with_one_line(
    arguments: list[str], message: str, finished_run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a run that fails at its start has a directory below the working directory
    kept = {
        path: path.read_bytes() for path in finished_run_dir.rglob("*") if path.is_file() and path.suffix != ".log"
    }
    result = run_genexp(*(word.format(run=finished_run_dir) for word in arguments))
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert message in line
    assert line.startswith("genexp: ")
    assert all(path.read_bytes() == content for path, content in kept.items() if ".hydra" not in path.parts)


@pytest.fixture(scope="module")
def finished_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two epochs, in a directory whose name must be quoted."""
    folder = tmp_path_factory.mktemp("a, (b) = c") / "run"
    assert (
        run_genexp(
            *make_tiny_overrides("stacked_autoencoder"), "trainer.epochs=2", format_run_dir_override(folder)
        ).exit_code
        == 0
    )
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "config.yaml: not plain YAML (line 2: "),
        ("", "config.yaml: not the configuration of a run"),
    ],
)
def test_resuming_a_damaged_configuration_fails_with_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    result = run_genexp(f"resume={tmp_path}")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert message in line


def test_run_directory_with_special_characters_can_be_resumed(finished_run_dir: Path) -> None:
    result = run_genexp(f"resume={finished_run_dir}", "trainer.epochs=3", 'notes="longer: by one"', "tags=[a,b]")
    assert result.exit_code == 0, result.stderr
    assert load_status(finished_run_dir)["epoch"] == 3
    config = yaml.safe_load((finished_run_dir / "config.yaml").read_text())
    assert (config["trainer"]["epochs"], config["notes"], config["tags"]) == (3, "longer: by one", ["a", "b"])


def redirect_stderr(log: Path) -> None:
    """Redirect the standard error of this process to a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interruption_before_the_first_step_prints_no_traceback(signum: signal.Signals, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "stderr"
    with start_genexp(
        *make_tiny_overrides("vae"), format_run_dir_override(folder), prepare=redirect_stderr, prepare_args=(log,)
    ) as process:
        wait_for((folder / "train.log").exists, seconds=120)
        assert process.pid is not None
        os.kill(process.pid, signum)
        process.join(60)
        assert process.exitcode == 128 + signum
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("arguments", [["--help"], ["model=vae", "--cfg", "job"]])
def test_output_into_a_closed_pipe_ends_without_a_message(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)  # as after `| head -1`
    try:
        result = subprocess.run(
            [GENEXP_EXECUTABLE, *arguments], stdout=write_end, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write_end)
    assert (result.returncode, result.stderr) == (1, b"")


def test_long_lists_of_choices_are_cut(tmp_path: Path) -> None:
    line = run_genexp("+qqqq=3", format_run_dir_override(tmp_path / "run")).stderr
    assert line.startswith("genexp: qqqq: unknown key. Use one of: dataset, ")
    assert re.search(r", … \(\d+ in all\)\.$", line.strip())
