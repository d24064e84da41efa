"""Plugins on the command line: choices, configuration, runs, sweeps, processes and commands on finished runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from genexp.cli import compare, diff, evaluate, sample
from genexp.registry import set_plugins
from genexp.run_dir.checkpoint import list_checkpoints
from tests.support.assertions import assert_same_run
from tests.support.command import (
    CommandResult,
    format_import_check,
    format_run_dir_override,
    get_error_line,
    load_status,
    read_metrics_log,
    run_genexp,
    run_main,
)
from tests.support.plugins import PLUGIN_RUN_OVERRIDES, write_example_plugin, write_plugin

CHECK_IMPORTS_SCRIPT = format_import_check("genexp.train", {"torch", "my_ideas", "genexp_plugin_my_ideas"})


@pytest.fixture(autouse=True)
def _remove_plugins() -> Iterator[None]:
    yield
    set_plugins([])


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the example plugin."""
    return write_example_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def finished_run(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the example plugin, of two epochs. Tests must not change it."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    result = run_example(example, "model=my_autoencoder", "trainer.epochs=2", format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    return run_dir


def run_example(plugin: Path, *arguments: str) -> CommandResult:
    """Run a short command with a plugin."""
    return run_genexp("--plugin", str(plugin), *PLUGIN_RUN_OVERRIDES, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plugin", "{example}", "--help"], "my_autoencoder"),
        ([f"--plugin={'{example}'}", "-h"], "spirals"),
        (["-sc", "query=bash"], "model=my_autoencoder"),
    ],
)
def test_help_and_completion_list_names_without_importing_the_file(
    arguments: list[str], message: str, example: Path
) -> None:
    words = [word.format(example=example) for word in arguments]
    result = subprocess.run(
        [sys.executable, "-c", CHECK_IMPORTS_SCRIPT, *words],
        env={"PATH": "", "COMP_LINE": f"genexp --plugin {example} model=my"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert message in result.stdout


def test_variable_names_plugins(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENEXP_PLUGINS", str(example))
    assert "my_autoencoder" in run_genexp("--help").stdout
    assert "my_autoencoder" in run_genexp("model=my_autoencoder", "--cfg", "job").stdout


def test_names_of_an_earlier_command_are_forgotten(example: Path) -> None:
    assert run_genexp("--plugin", str(example), "model=my_autoencoder", "--cfg", "job").exit_code == 0
    line = get_error_line(run_genexp("model=my_autoencoder", "--cfg", "job"), "genexp")
    assert "model=my_autoencoder: unknown name" in line
    assert "my_autoencoder" not in run_genexp("--help").stdout


def test_configuration_has_the_defaults_of_the_dataclass_and_the_recipe(tmp_path: Path) -> None:
    source = """
@genexp.register_technique("mine")
class Mine(genexp.Technique):
    recipe = {"lr": 0.25, "epochs": 3}
    @dataclass
    class Config:
        widths: list[int] = field(default_factory=lambda: [3, 2])
    def phases(self): ...
"""
    arguments = ("--plugin", str(write_plugin(tmp_path, source)), "model=mine", "model.widths=[4]")
    config = yaml.safe_load(run_genexp(*arguments, "--cfg", "job", "--resolve").stdout)
    assert config["model"] == {"name": "mine", "widths": [4], "recipe": {"lr": 0.25, "epochs": 3}}
    assert (config["optimizer"]["lr"], config["trainer"]["epochs"]) == (0.25, 3)


def test_yaml_of_a_configuration_directory_takes_precedence(example: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "my_autoencoder.yaml").write_text("name: my_autoencoder\nlatent: 3\n")
    options = ("--plugin", str(example), f"--config-dir={tmp_path}", "model=my_autoencoder", "--cfg", "job")
    assert yaml.safe_load(run_genexp(*options).stdout)["model"] == {"name": "my_autoencoder", "latent": 3}


def test_wrong_keys_and_values_are_one_line(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for overrides, message in (
        (["model=my_autoencoder", "model.latnet=3"], "model.latnet: unknown key"),
        (["model=my_autoencoder", "model.latent=x"], "model.latent=x: must be an integer"),
        (["model=my_autoencodre"], "Did you mean my_autoencoder?"),
        (
            ["model=stacked_autoencoder", "model.loss=hubre"],
            "model.loss=hubre: must be one of bce, huber, l1, mse",
        ),
        (["model.loss=huber", "model=gan"], "model.loss=huber: must be one of hinge"),
        (
            ["model=stacked_autoencoder", "model.loss=huber", "model.loss_options.dleta=1"],
            "model.loss_options.dleta=1: unknown option. Did you mean delta?",
        ),
    ):
        assert message in get_error_line(run_example(example, *overrides), "genexp")


def test_run_notes_its_plugin_and_resumes_exactly(example: Path, finished_run: Path, tmp_path: Path) -> None:
    assert load_status(finished_run)["test"].keys() == {"loss"}
    (record,) = json.loads((finished_run / "plugins.json").read_text())
    assert (record["name"], record["file"]) == ("my_ideas", str(example))
    run_dir = tmp_path / "run"
    overrides = ("model=my_autoencoder", "trainer.epochs=1", format_run_dir_override(run_dir))
    assert run_example(example, *overrides).exit_code == 0
    result = run_genexp("--plugin", str(example), f"resume={run_dir}", "trainer.epochs=2")
    assert result.exit_code == 0, result.stderr
    assert_same_run(finished_run, run_dir)


def test_resuming_without_the_plugin_is_refused_and_changes_nothing(finished_run: Path) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    line = get_error_line(run_genexp(f"resume={finished_run}", "trainer.epochs=3"), "genexp")
    assert "requires the plugin my_ideas. Add --plugin" in line
    after = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {finished_run / "train.log"}


def test_changed_plugin_resumes_with_a_warning(example: Path, finished_run: Path, tmp_path: Path) -> None:
    changed = tmp_path / example.name
    changed.write_text(example.read_text() + "\n# changed\n")
    run_dir = tmp_path / "run"
    overrides = ("model=my_autoencoder", "trainer.epochs=1", format_run_dir_override(run_dir))
    assert run_example(example, *overrides).exit_code == 0
    result = run_genexp("--plugin", str(changed), f"resume={run_dir}", "trainer.epochs=2")
    assert result.exit_code == 0, result.stderr
    assert "the plugin my_ideas has changed" in (run_dir / "train.log").read_text()
    (record,) = json.loads((run_dir / "plugins.json").read_text())
    assert len(set(record["sha256"])) == 2


def test_difference_of_runs_names_changed_plugins(example: Path, finished_run: Path, tmp_path: Path) -> None:
    changed = tmp_path / example.name
    changed.write_text(example.read_text() + "\n# changed\n")
    overrides = ("model=my_autoencoder", "trainer.epochs=2", format_run_dir_override(tmp_path / "run"))
    assert run_example(changed, *overrides).exit_code == 0
    result = run_main("genexp-diff", diff.main, str(finished_run), str(tmp_path / "run"))
    assert "my_ideas (SHA-256 " in result.stdout
    assert "code: no difference" not in result.stdout


def test_commands_on_finished_runs_take_the_plugin(example: Path, finished_run: Path) -> None:
    run_dir, option = str(finished_run), ("--plugin", str(example))
    result = run_main("genexp-evaluate", evaluate.main, *option, run_dir)
    assert result.exit_code == 0, result.stderr
    assert "loss" in result.stdout
    line = get_error_line(run_main("genexp-sample", sample.main, *option, run_dir), "genexp-sample")
    assert "model=my_autoencoder: generates no files" in line
    result = run_main("genexp-compare", compare.main, *option, run_dir)
    assert result.exit_code == 0, result.stderr
    for program, command in (("genexp-evaluate", evaluate.main), ("genexp-sample", sample.main)):
        assert "requires the plugin" in get_error_line(run_main(program, command, run_dir), program)


def test_run_directory_cannot_name_code(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration with a plugin in it loads nothing."""
    monkeypatch.chdir(tmp_path)  # a run that fails at its start has a directory below the working directory
    bad = tmp_path / "bad.py"
    bad.write_text(f"open({str(tmp_path / 'boom')!r}, 'w')")
    for override in (f"+plugin={bad}", f"+plugins=[{bad}]", f"model={bad}", f"+model.plugin={bad}"):
        get_error_line(run_genexp("model=vae", override, *PLUGIN_RUN_OVERRIDES), "genexp")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes((finished_run / "config.yaml").read_bytes())
    record = [{"name": "bad", "file": str(bad), "sha256": ["0"]}]
    (tmp_path / "run" / "plugins.json").write_text(json.dumps(record))
    assert "the plugin bad" in get_error_line(run_genexp(f"resume={tmp_path / 'run'}"), "genexp")
    assert not (tmp_path / "boom").exists()


def test_dataset_and_loss_work_with_built_in_techniques(example: Path, tmp_path: Path) -> None:
    overrides = ("model=kmeans", "dataset=spirals", "dataset.count=50", "dataset.limit=30", "device=cpu")
    result = run_genexp("--plugin", str(example), *overrides, format_run_dir_override(tmp_path / "kmeans"))
    assert result.exit_code == 0, result.stderr
    assert load_status(tmp_path / "kmeans")["dataset"] == "spirals"
    losses = []
    for number, loss in enumerate((["mse"], ["huber"], ["huber", "model.loss_options.delta=0.01"])):
        run_dir = tmp_path / str(number)
        arguments = ("model=stacked_autoencoder", f"model.loss={loss[0]}", *loss[1:])
        result = run_example(example, *arguments, "trainer.max_steps=1", format_run_dir_override(run_dir))
        assert result.exit_code == 0, result.stderr
        losses.append(read_metrics_log(run_dir)[0]["loss"])
    assert losses[1] == pytest.approx(losses[0] / 2)  # below delta, Huber's loss is half the squared error
    assert losses[2] < losses[1] / 10


@pytest.mark.parametrize(
    "launcher",
    # The proof of plugins, test_plugin_proof.py, has a sweep under joblib and submitit.
    [
        "basic",
        "vectorized",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("joblib", "submitit_local")),
    ],
)
def test_launchers_run_plugins(launcher: str, example: Path, tmp_path: Path) -> None:
    options = {"basic": [], "vectorized": ["hydra.launcher.measure=false"]}.get(
        launcher, ["hydra.launcher.n_jobs=1"]
    )
    result = run_example(
        example,
        "-m",
        "model=my_autoencoder",
        "seed=0,1",
        "trainer.max_steps=2",
        f"hydra/launcher={launcher}",
        *options,
        f"hydra.sweep.dir={tmp_path}",
    )
    assert result.exit_code == 0, result.stderr
    for number in "01":
        assert load_status(tmp_path / number)["state"] == "finished"
        assert json.loads((tmp_path / number / "plugins.json").read_text())[0]["name"] == "my_ideas"
    if launcher == "vectorized":
        assert "jobs #0, #1 run as an ensemble" in result.stdout


def test_technique_that_cannot_be_stacked_runs_singly(tmp_path: Path) -> None:
    plugin = write_example_plugin(tmp_path)
    plugin.write_text(
        plugin.read_text().replace(
            "return huber(self", 'assert batch["image"].mean().item()\n        return huber(self'
        )
    )
    overrides = ("-m", "model=my_autoencoder", "seed=0,1", "trainer.max_steps=1", "hydra/launcher=vectorized")
    result = run_example(plugin, *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert result.exit_code == 0, result.stderr
    assert "jobs #0, #1 run sequentially: control flow depends on a tensor" in result.stdout
    assert [load_status(tmp_path / "sweep" / number)["state"] for number in "01"] == 2 * ["finished"]


@pytest.mark.slow  # the proof of plugins has two processes, too
def test_several_processes_load_the_plugin(example: Path, finished_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = (
        "model=my_autoencoder",
        "trainer.epochs=2",
        "device.processes=2",
        format_run_dir_override(run_dir),
    )
    result = run_example(example, *overrides, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    values, expected = (read_metrics_log(folder)[-1]["loss"] for folder in (run_dir, finished_run))
    assert values == pytest.approx(expected, rel=1e-4)
    assert list_checkpoints(run_dir)


def test_lazy_streams_are_read_by_worker_processes(tmp_path: Path) -> None:
    source = """
class Pictures(genexp.LazyStream):
    sample_shape, dtype = (1, 8, 8), torch.uint8
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return torch.full((1, 8, 8), index, dtype=torch.uint8)

@genexp.register_dataset("lazy")
@dataclass
class Lazy:
    def load(self):
        return genexp.Dataset("lazy", genexp.Split({"image": Pictures()}), genexp.Split({"image": Pictures()}))
"""
    options = ("dataset=lazy", "dataset.resident_gb=0", "model=stacked_autoencoder", "model.widths=[4]")
    arguments = (*options, "trainer.max_steps=2", format_run_dir_override(tmp_path / "run"))
    result = run_example(write_plugin(tmp_path, source), *arguments)
    assert result.exit_code == 0, result.stderr
    assert load_status(tmp_path / "run")["state"] == "finished"
