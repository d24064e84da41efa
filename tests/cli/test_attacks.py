"""Attacks by files from others on real commands: nothing is executed, or written outside the output directory."""

from __future__ import annotations

import os
import pickle
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from genexp.cli import compare, evaluate, sample
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from tests.support.command import FIGURES_ON, CommandResult, get_error_line, run_genexp, run_main
from tests.support.compose import make_tiny_overrides

TINY_RUN = (*make_tiny_overrides("stacked_autoencoder"), FIGURES_ON, "model.widths=[16,3]", "trainer.max_steps=2")
CALL = {"_target_": "pathlib.Path.touch", "self": "executed"}
PICKLE_CALL = {"_target_": "torch.load", "f": "EVIL/x.pt", "weights_only": False}
LOGGING = {"version": 1, "handlers": {"x": {"class": "logging.FileHandler", "filename": "executed"}}}


class Payload:
    """Object whose unpickling creates the file `executed`."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


@pytest.fixture(scope="module")
def finished_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "EVIL"
    assert run_genexp(*TINY_RUN, f"hydra.run.dir={directory}").exit_code == 0
    return directory


@pytest.fixture
def evil_dir(finished_run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run of an attacker, in the working directory, with a pickle that executes code."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run_dir, "EVIL")
    Path("EVIL/x.pt").write_bytes(pickle.dumps(Payload()))
    Path("victim.txt").write_text("of the user")
    return Path("EVIL")


def resume(*overrides: str) -> CommandResult:
    return run_genexp("resume=EVIL", "trainer.max_steps=3", *overrides)


def read_files(directory: Path = Path()) -> dict[str, bytes]:
    """Return path → content of all files below a directory."""
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def assert_refused(result: CommandResult, reason: str, before: dict[str, bytes]) -> None:
    """Fail unless a command ended with one line, and executed and changed nothing."""
    line = get_error_line(result, "genexp", "genexp-sample", "genexp-evaluate", "genexp-compare")
    assert reason in line
    assert read_files() == before
    assert not Path("executed").exists()


HYDRA_SETTINGS: tuple[dict[str, Any], ...] = (
    {"callbacks": {"x": PICKLE_CALL}},
    {"callbacks": {"x": CALL}},
    {"job_logging": LOGGING},
    {"hydra_logging": LOGGING},
    {"job": {"env_set": {"LD_PRELOAD": "x.so"}}},
    {"launcher": CALL},
)


@pytest.mark.parametrize("node", HYDRA_SETTINGS, ids=lambda node: next(iter(node)))
def test_hydra_settings_in_a_run_are_refused(node: dict[str, Any], evil_dir: Path) -> None:
    with (evil_dir / "config.yaml").open("a") as file:
        yaml.safe_dump({"hydra": node}, file)
    assert_refused_after(resume, "unknown key hydra")


@pytest.mark.parametrize("node", HYDRA_SETTINGS, ids=lambda node: next(iter(node)))
def test_hydra_settings_in_a_configuration_directory_are_refused(node: dict[str, Any], evil_dir: Path) -> None:
    Path("stranger/experiment").mkdir(parents=True)
    Path("stranger/experiment/x.yaml").write_text(f"# @package _global_\n{yaml.safe_dump({'hydra': node})}")
    run = (*TINY_RUN, "experiment=x", "hydra.run.dir=out")
    assert_refused_after(lambda: run_genexp("--config-dir=stranger", *run), "not allowed")
    assert_refused_after(lambda: run_genexp(f"--config-path={Path('stranger').resolve()}", *run), "not allowed")


def test_files_where_hydra_would_search_in_a_run_are_not_used(evil_dir: Path) -> None:
    for folder in (evil_dir / ".hydra", evil_dir / "hydra", evil_dir / "model"):
        folder.mkdir(exist_ok=True)
        for name in ("config", "hydra", "default", "train", "stacked_autoencoder"):
            text = "".join(yaml.safe_dump({"hydra": node, **node}) for node in HYDRA_SETTINGS)
            (folder / f"{name}.yaml").write_text(text)
    assert resume().exit_code == 0
    assert not Path("executed").exists()
    assert "LD_PRELOAD" not in os.environ


def assert_refused_after(command: Any, reason: str) -> None:
    before = read_files()
    assert_refused(command(), reason, before)


@pytest.mark.parametrize(("is_archive", "reason"), [(False, "damaged"), (True, "possibly code")])
def test_pickles_in_place_of_checkpoints_are_not_loaded(is_archive: bool, reason: str, evil_dir: Path) -> None:
    for path in (evil_dir / "checkpoints").iterdir():
        if is_archive:
            torch.save({"format": 2, "step": 2, "technique": Payload()}, path)
        else:
            path.write_bytes((evil_dir / "x.pt").read_bytes())
    assert_refused_after(resume, "no usable checkpoint")
    assert_refused_after(lambda: run_main("genexp-sample", sample.main, "EVIL"), reason)
    assert_refused_after(lambda: run_main("genexp-evaluate", evaluate.main, "EVIL"), reason)


@pytest.mark.parametrize(
    "name", ["../victim.txt", "{cwd}/victim.txt", "config.yaml", "tensorboard/../../victim.txt"]
)
def test_sizes_of_other_files_in_a_checkpoint_truncate_nothing(name: str, evil_dir: Path) -> None:
    for path in list_checkpoints(evil_dir):
        content = load_checkpoint(path)
        content["log_offsets"][name.format(cwd=Path.cwd())] = 0
        save_checkpoint(path, content)
    config = (evil_dir / "config.yaml").read_text()
    resume("trainer.epochs=1")  # starts anew from step 0, whose logs are empty
    assert Path("victim.txt").read_text() == "of the user"
    assert (evil_dir / "config.yaml").read_text().splitlines()[0] == config.splitlines()[0]


@pytest.mark.parametrize("name", ["x.gif", "figures/x.gif", "previews/x", "projector/x", "status.json"])
def test_links_in_a_run_are_not_followed(name: str, evil_dir: Path) -> None:
    (evil_dir / name).unlink(missing_ok=True)
    (evil_dir / name).symlink_to(Path("victim.txt").resolve())
    assert_refused_after(resume, "a link")


@pytest.mark.parametrize("name", ["made", "made/samples.png", "evaluation.json"])
@pytest.mark.parametrize("program", ["genexp-sample", "genexp-evaluate"])
def test_tools_do_not_write_through_links(program: str, name: str, evil_dir: Path) -> None:
    (evil_dir / name).parent.mkdir(exist_ok=True)
    (evil_dir / name).symlink_to(Path("victim.txt" if "." in name else ".").resolve())
    main = sample.main if program == "genexp-sample" else evaluate.main
    assert_refused_after(lambda: run_main(program, main, "EVIL", "--device", "cpu"), "a link")


@pytest.mark.parametrize("folder", ["", "."])
def test_a_run_does_not_write_over_files_of_others(folder: str, evil_dir: Path) -> None:
    Path("metrics.jsonl").write_text("of the user")
    assert_refused_after(lambda: run_genexp(*TINY_RUN, f"hydra.run.dir={folder}"), "contains other files")


def test_pickled_results_in_a_resumed_sweep_are_not_loaded(
    evil_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genexp.sweep.launcher.SweepLauncher.setup", lambda self, **_: None)
    launcher = import_module("hydra_plugins.genexp_submitit_launcher").LocalLauncher(1, 1, 1)
    launcher.sweep_dir = evil_dir
    for number in range(3):
        launcher.setup()
        assert not launcher.submitit_dir.exists(), number
        launcher.submitit_dir.mkdir(parents=True)


def test_a_rejected_resumption_writes_no_log(evil_dir: Path) -> None:
    assert_refused_after(lambda: resume("optimizer.lr=0.5"), "cannot change optimizer.lr")
    assert_refused_after(lambda: resume("trainer.max_steps=0"), "trainer.max_steps=0")


def test_a_run_whose_values_could_not_be_read_again_does_not_start(evil_dir: Path) -> None:
    for value in (r"notes='\${oc.env:HOME}'", r"tags=['\${x}']"):
        line = get_error_line(run_genexp(*TINY_RUN, value, "hydra.run.dir=out"), "genexp")
        assert "contains an interpolation" in line
    assert not Path("out/config.yaml").exists()


def test_comparisons_execute_and_follow_nothing(evil_dir: Path) -> None:
    (evil_dir / "config.yaml").unlink()
    (evil_dir / ".hydra" / "config.yaml").write_text(yaml.safe_dump({"model": CALL, "hydra": {"callbacks": CALL}}))
    (evil_dir / "status.json").unlink()
    (evil_dir / "status.json").symlink_to(Path("victim.txt").resolve())
    result = run_main("genexp-compare", compare.main, "EVIL")
    assert "damaged" in result.stdout + result.stderr
    assert not Path("executed").exists()
