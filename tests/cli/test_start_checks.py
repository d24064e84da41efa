"""Directories that a command line names: configurations without code, and output folders without other files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command import get_error_line, run_genexp
from tests.support.compose import make_tiny_overrides

GLOBAL = "# @package _global_\n"
LOG_HANDLER = "{class: logging.FileHandler, filename: boom}"
LOGGING = f"version: 1\nhandlers: {{x: {LOG_HANDLER}}}\nroot: {{handlers: [x]}}\n"


def write_config_dir(directory: Path, files: dict[str, str]) -> Path:
    """Write relative path → text below `directory`."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


@pytest.fixture(autouse=True)
def _change_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "subject"),
    [
        ("experiment/x.yaml", GLOBAL + "hydra: {callbacks: {x: {_target_: a.b}}}", "hydra.callbacks"),
        (
            "experiment/x.yaml",
            GLOBAL + f"hydra: {{job_logging: {{handlers: {{x: {LOG_HANDLER}}}}}}}",
            "hydra.job_logging",
        ),
        ("experiment/x.yaml", GLOBAL + "hydra: {hydra_logging: null}", "hydra.hydra_logging"),
        ("experiment/x.yaml", GLOBAL + "hydra: {job: {env_set: {PATH: x}}}", "hydra.job"),
        ("experiment/x.yaml", GLOBAL + "hydra: {run: {dir: /tmp}}", "hydra.run"),
        ("experiment/x.yaml", GLOBAL + "hydra: {searchpath: [file:///tmp]}", "hydra.searchpath"),
        ("experiment/x.yaml", GLOBAL + "hydra: {launcher: {_target_: a.b}}", "hydra.launcher._target_"),
        ("experiment/x.yaml", GLOBAL + "hydra: {launcher: {setup: [touch boom]}}", "hydra.launcher.setup"),
        ("experiment/x.yaml", GLOBAL + "hydra: {launcher: {address: 'ray://evil:1'}}", "hydra.launcher.address"),
        ("experiment/x.yaml", GLOBAL + 'hydra: {launcher: {partition: "a\\nb"}}', "hydra.launcher.partition"),
        (
            "experiment/x.yaml",
            GLOBAL + "hydra: {launcher: {additional_parameters: {a: 1}}}",
            "hydra.launcher.additional",
        ),
        ("experiment/x.yaml", GLOBAL + "hydra: {sweeper: {storage: /home/me/file}}", "hydra.sweeper.storage"),
        (
            "experiment/x.yaml",
            GLOBAL + "hydra: {sweeper: {params: {hydra.job.env_set.A: 1}}}",
            "hydra.sweeper.params",
        ),
        ("experiment/x.yaml", GLOBAL + "hydra: {sweeper: {params: {+resume: x}}}", "hydra.sweeper.params.+resume"),
        ("experiment/x.yaml", GLOBAL + "model: {_target_: a.b}", "model._target_"),
        ("experiment/x.yaml", GLOBAL + "model: {hidden: [{_target_: a.b}]}", "model.hidden._target_"),
        ("experiment/x.yaml", GLOBAL + "notes: ${oc.env:HOME}", "notes=${oc.env:HOME}"),
        ("experiment/x.yaml", GLOBAL + "notes: ${oc.${seed}:HOME}", "notes="),
        ("experiment/x.yaml", GLOBAL + "resume: /some/run", "resume"),
        ("experiment/x.yaml", GLOBAL + "sweep: {resume: /some/sweep}", "sweep.resume"),
        ("experiment/x.yaml", "# @package hydra\njob: {env_set: {A: b}}", "@package hydra"),
        ("experiment/x.yaml", "# @package hydra.job\nenv_set: {A: b}", "@package hydra.job"),
        ("experiment/x.yaml", "# @package _global_ x\nseed: 1", "its first line"),
        (
            "experiment/x.yaml",
            GLOBAL + "defaults: [override /hydra/job_logging: x]",
            "defaults: {'override /hydra/job_logging",
        ),
        (
            "experiment/x.yaml",
            GLOBAL + "defaults: ['/model@hydra.callbacks.x: y']",
            "defaults: /model@hydra.callbacks",
        ),
        ("experiment/x.yaml", GLOBAL + "defaults: [{/model@hydra.callbacks.x: y}]", "defaults: {'/model@hydra"),
        ("experiment/x.yaml", GLOBAL + "defaults: [/hydra/callbacks/x]", "defaults: /hydra/callbacks/x"),
        ("experiment/x.yaml", GLOBAL + "defaults: [{/model: ../../x}]", "defaults: {'/model': '../../x'}"),
        ("experiment/x.yaml", GLOBAL + "defaults: [3]", "defaults: 3"),
        ("hydra/job_logging/x.yaml", LOGGING, "a file of hydra/job_logging"),
        ("hydra/callbacks/x.yaml", "x: {_target_: a.b}", "a file of hydra/callbacks"),
        ("hydra/config.yaml", "x: 1", "a file of hydra"),
        ("hydra/launcher/x.yaml", "_target_: a.b", "hydra.launcher._target_"),
        ("hydra/launcher/x.yaml", "defaults: [/evil]", "defaults: /evil"),
        ("hydra/launcher/x.yaml", "defaults: [{/model: vae}]", "defaults: {'/model'"),
        ("hydra/launcher/x.yaml", GLOBAL + "setup: [x]", "@package _global_"),
        ("hydra/launcher/x.yaml", "#" + "x" * 600 + "\n" + GLOBAL + "setup: [x]", "hydra.launcher.setup"),
        ("train2.yaml", "hydra: {callbacks: {x: {_target_: a.b}}}", "hydra.callbacks"),
        ("experiment/x.yaml", "a: &a 1\nb: *a", "an anchor or alias"),
        ("experiment/x.yaml", "a: !!python/name:os.system", "a tag"),
        ("model/sub/x.yaml", "x: {_target_: a.b}", "model.sub.x._target_"),
    ],
)
def test_a_file_with_more_than_plain_settings_is_refused(
    name: str, text: str, subject: str, tmp_path: Path
) -> None:
    directory = write_config_dir(tmp_path / "mine", {name: text})
    for option in (
        f"--config-dir={directory}",
        f"--config-path={directory}",
        f"hydra.searchpath=[file://{directory}]",
    ):
        line = get_error_line(run_genexp(option, "--cfg", "job"), "genexp")
        assert f"mine/{name}: " in line
        assert subject in line
        assert "--trust-config-dir" in line
    assert not (tmp_path / "boom").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    write_config_dir(tmp_path / "other", {"x.yaml": GLOBAL + "seed: 1"})
    for link, target in (("experiment", tmp_path / "other"), ("experiment/x.yaml", tmp_path / "other" / "x.yaml")):
        directory = tmp_path / f"mine{len(link)}"
        (directory / link).parent.mkdir(parents=True)
        (directory / link).symlink_to(target)
        line = get_error_line(run_genexp(f"--config-dir={directory}", "experiment=x", "--cfg", "job"), "genexp")
        assert f"{link}: a link is not allowed" in line


def test_values_launchers_and_sweepers_are_accepted(tmp_path: Path) -> None:
    preset = (
        "defaults:\n  - override /model: narrow\n  - override /hydra/launcher: many\n"
        "  - override /hydra/sweeper: basic\n  - _self_\n"
        "seed: 5\nnotes: seed ${seed} of ${model.name}\n"
        "hydra:\n  sweeper:\n    params: {seed: 'range(3)', optimizer.lr: '1e-3,1e-4'}\n"
    )
    files = {
        "experiment/mine.yaml": GLOBAL + preset,
        "model/narrow.yaml": "defaults: [vae, _self_]\nlatent: 2\n",
        "hydra/launcher/many.yaml": "defaults: [joblib]\nn_jobs: 2\n",
        "notes.txt": "_target_: a.b",
        "outputs/.hydra/hydra.yaml": "hydra: {callbacks: {x: {_target_: a.b}}}",
    }
    directory = write_config_dir(tmp_path / "mine", files)
    arguments = (f"--config-dir={directory}", "experiment=mine", "--cfg")
    job, hydra = run_genexp(*arguments, "job", "--resolve"), run_genexp(*arguments, "hydra")
    assert (job.exit_code, hydra.exit_code) == (0, 0), job.stderr + hydra.stderr
    for text in ("latent: 2", "seed: 5", "notes: seed 5 of vae"):
        assert text in job.stdout
    for text in ("n_jobs: 2", "JoblibLauncher", "seed: range(3)"):
        assert text in hydra.stdout


def test_trusted_directory_may_name_code(tmp_path: Path) -> None:
    directory = write_config_dir(tmp_path / "mine", {"hydra/job_logging/own.yaml": LOGGING})
    arguments = (f"--config-dir={directory}", "hydra/job_logging=own", "--cfg", "hydra")
    assert run_genexp(*arguments).exit_code == 1
    result = run_genexp("--trust-config-dir", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "filename: boom" in result.stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config-dir=absent", "absent: configuration directory not found"),
        ("--config-path=relative", "relative: not an absolute path"),
        ("hydra.searchpath=[http://example.org/x]", "not an absolute path"),
    ],
)
def test_a_directory_that_cannot_be_checked_is_refused(option: str, message: str) -> None:
    assert message in get_error_line(run_genexp(option, "--cfg", "job"), "genexp")


def test_installed_packages_are_trusted() -> None:
    assert run_genexp("hydra.searchpath=[pkg://hydra.test_utils.configs]", "--cfg", "job").exit_code == 0


@pytest.mark.parametrize(
    "name", ["train.log", "x.gif", "figures/loss.png", ".hydra/config.yaml", "report.html", ".lock"]
)
@pytest.mark.parametrize("value", [".", "", "{cwd}"])
def test_a_run_does_not_start_in_a_folder_with_files_of_others(value: str, name: str, tmp_path: Path) -> None:
    write_config_dir(tmp_path, {name: "mine", "README.md": "mine"})
    line = get_error_line(
        run_genexp(f"hydra.run.dir={value.format(cwd=tmp_path)}", "trainer.max_steps=1"), "genexp"
    )
    assert f"hydra.run.dir={tmp_path}: contains other files ({name.partition('/')[0]})" in line
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {Path(name).name, "README.md"}
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["multirun.yaml", "optuna.log", "3/notes.txt", ".lock", "report.html"])
def test_a_sweep_does_not_start_in_a_folder_with_files_of_others(name: str, tmp_path: Path) -> None:
    write_config_dir(tmp_path, {name: "mine"})
    line = get_error_line(run_genexp("-m", "hydra.sweep.dir=.", "seed=0,1"), "genexp")
    assert f"hydra.sweep.dir={tmp_path}: contains other files ({name.partition('/')[0]})" in line
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]


def test_a_run_starts_beside_other_files_and_again_after_it_failed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    run = (*make_tiny_overrides("kmeans"), "trainer.max_steps=1", "hydra.run.dir=.")
    assert run_genexp(*run, "model.clusters=0").exit_code == 1
    assert (tmp_path / ".hydra").is_dir()
    result = run_genexp(*run)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "already contains a run. Use resume=" in get_error_line(run_genexp(*run), "genexp")


def test_a_sweep_that_was_killed_before_its_first_job_starts_again(tmp_path: Path) -> None:
    write_config_dir(tmp_path, {".lock": "", "multirun.yaml.1a2b3c4d.tmp": "half of"})
    run = (*make_tiny_overrides("kmeans"), "trainer.max_steps=1")
    result = run_genexp("-m", *run, "model.init=random,uniform", "hydra.sweep.dir=.")
    assert result.exit_code == 0, result.stderr
    assert not list(tmp_path.glob("*.tmp"))
    line = get_error_line(run_genexp("-m", *run, "seed=0,1", "hydra.sweep.dir=."), "genexp")
    assert "already contains a sweep. Use sweep.resume=" in line


def test_an_output_folder_outside_the_working_directory_is_printed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    os.chdir(tmp_path / "inside")
    run = (*make_tiny_overrides("kmeans"), "trainer.max_steps=1")
    result = run_genexp(*run, "hydra.run.dir=link/run")
    assert f"output outside the working directory: {tmp_path}/run" in result.stdout
    assert "outside the working directory" not in run_genexp(*run, "hydra.run.dir=run").stdout
