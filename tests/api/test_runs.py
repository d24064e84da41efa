"""Python interface: runs, their files, sweeps, comparisons, errors, and the example of genexp/README.md."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore

import genexp
from genexp.api.runs import SavedRun
from genexp.errors import CheckpointError, ConfigError, DataError, GenexpError
from genexp.registry import set_plugins
from genexp.technique import TECHNIQUES
from tests.support.assertions import assert_same_run
from tests.support.command import REPO_ROOT, format_run_dir_override, run_genexp
from tests.support.plugins import PLUGIN_RUN_OVERRIDES, write_example_plugin

MODEL = "model=stacked_autoencoder"
STEPS = "trainer.max_steps=6"


@pytest.fixture(autouse=True)
def _remove_plugins() -> Iterator[None]:
    yield
    set_plugins([])


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> SavedRun:
    """Return a run of six steps."""
    run_dir = tmp_path_factory.mktemp("api") / "run"
    return genexp.run(MODEL, STEPS, *PLUGIN_RUN_OVERRIDES, format_run_dir_override(run_dir))


def test_import_is_fast_and_imports_no_torch() -> None:
    script = "import sys, genexp; assert 'torch' not in sys.modules and 'run' in dir(genexp), dir(genexp)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        genexp.absent  # noqa: B018


def test_run_equals_that_of_the_command(saved_run: SavedRun, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run_genexp(MODEL, STEPS, *PLUGIN_RUN_OVERRIDES, format_run_dir_override(run_dir)).exit_code == 0
    assert_same_run(run_dir, saved_run.path)


def test_run_has_metrics_scores_configuration_and_technique(saved_run: SavedRun) -> None:
    assert saved_run.state == "finished"
    assert saved_run.config["model"]["name"] == "stacked_autoencoder"
    metrics = saved_run.metrics
    train, test = metrics[metrics["split"] == "train"], metrics[metrics["split"] == "test"]
    assert train["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(train["loss"]).all()
    assert np.isnan(train["mse"]).all()
    assert test["mse"][-1] == saved_run.scores["mse"]
    assert not saved_run.technique.training
    images = torch.rand(3, 1, 28, 28)
    assert saved_run.technique.reconstruct(images).shape == images.shape  # type: ignore[operator]
    assert len(saved_run.dataset.train) == 40
    assert genexp.load_run(saved_run.path).scores == saved_run.scores


def test_run_and_table_show_themselves_in_a_notebook(saved_run: SavedRun) -> None:
    text = saved_run._repr_html_()
    assert "<p>stacked_autoencoder on mnist_5k: finished</p>" in text
    assert "<dt>mse</dt>" in text
    assert 1 <= text.count('<img src="data:image/') <= 3
    table = genexp.compare(saved_run.path)._repr_html_()
    assert table.count("<tr>") == 2
    assert "<td>finished</td>" in table


def test_settings_are_overrides(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "dataset": {"name": "mnist_5k", "limit": 40},
        "model": {"widths": [12, 3], "encoder": None},
        "trainer": {"batch_size": 8, "deterministic": True},
        "optimizer": "sgd",
        "device": "cpu",
    }
    run = genexp.run(MODEL, "trainer.max_steps=1", format_run_dir_override(tmp_path / "run"), **settings)
    config = run.config
    assert (config["model"]["widths"], config["model"]["encoder"]) == ([12, 3], None)
    assert (config["optimizer"]["name"], config["trainer"]["deterministic"]) == ("sgd", True)


def test_sweep_and_comparison(tmp_path: Path) -> None:
    sweep_dir = f"hydra.sweep.dir={tmp_path}"
    runs = genexp.run_sweep(MODEL, "trainer.max_steps=1", *PLUGIN_RUN_OVERRIDES, sweep_dir, seed=[0, 1])
    assert {run.config["seed"] for run in runs} == {0, 1}
    assert runs[0].scores["mse"] < runs[1].scores["mse"]
    table = genexp.compare(tmp_path)
    assert [row["path"] for row in table] == [str(run.path) for run in runs]
    assert table[0]["mse"] == runs[0].scores["mse"]


def test_plugins_are_used_and_kept(tmp_path: Path) -> None:
    plugin = write_example_plugin(tmp_path)
    overrides = ("model=my_autoencoder", "trainer.max_steps=1", *PLUGIN_RUN_OVERRIDES)
    run = genexp.run(*overrides, format_run_dir_override(tmp_path / "first"), plugins=[plugin])
    genexp.run(*overrides, format_run_dir_override(tmp_path / "second"))
    set_plugins([])
    with pytest.raises(CheckpointError, match="requires the plugin my_ideas"):
        assert genexp.load_run(run.path).technique
    assert genexp.load_run(run.path, plugins=[plugin]).technique.name == "my_autoencoder"


def test_technique_of_a_notebook_can_be_run(tmp_path: Path) -> None:
    @genexp.register_technique("of_a_notebook")
    class OfANotebook(genexp.Technique):
        @dataclass
        class Config:
            size: int = 3

        def __init__(self, config: Config, spec: object) -> None:
            super().__init__()
            self.weights = torch.nn.Linear(config.size, 1)

        def phases(self) -> tuple[genexp.GradientPhase, ...]:
            return (
                genexp.GradientPhase(
                    "phase", self, lambda batch, clock: (self.weights.weight.square().mean(), {})
                ),
            )

        def evaluate(self, test_batches: object) -> dict[str, float]:
            return {"loss": float(self.weights.weight.square().mean())}

    try:
        overrides = ("model=of_a_notebook", "model.size=4", "trainer.max_steps=2", *PLUGIN_RUN_OVERRIDES)
        run = genexp.run(*overrides, format_run_dir_override(tmp_path / "run"))
        assert run.scores["loss"] < run.metrics["loss"][0]
    finally:
        TECHNIQUES._members.pop("of_a_notebook")


def test_errors_are_exceptions_with_one_line(saved_run: SavedRun, tmp_path: Path) -> None:
    for settings, message in (
        ({"model": "vea"}, "model=vea"),
        ({"trainer": {"epochs": "x"}}, "trainer.epochs=x: "),
        ({"dataset": {"limit": 4}, "device": "cpu"}, "trainer.batch_size="),
        ({"hydra.run.dir": saved_run.path}, "contains a run"),
    ):
        with pytest.raises(GenexpError) as excinfo:
            genexp.run(format_run_dir_override(tmp_path / "run"), **settings)
        assert message in str(excinfo.value)
        assert "\n" not in str(excinfo.value)
    with pytest.raises(CheckpointError, match="not a run directory"):
        genexp.load_run(tmp_path / "absent")
    with pytest.raises(DataError):
        genexp.compare(tmp_path / "absent")
    with pytest.raises(ConfigError):
        genexp.run(plugins=["absent.py"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: genexp.run(5), "5: not a string. Use 'KEY=VALUE'"),  # type: ignore[arg-type]
        (lambda: genexp.run("-m", "seed=0,1"), "-m seed=0,1: not a single run. Remove -m"),
        (lambda: genexp.run("--help"), "--help: does not train a run"),
        (lambda: genexp.run("model=vae", plugins="a.py"), "plugins='a.py': must be a list of files or modules"),
        (lambda: genexp.load_run(5), "5: not a path"),  # type: ignore[arg-type]
        (lambda: genexp.compare(), "genexp.compare: no directory"),
        (lambda: genexp.Dataset.from_arrays(train=5, test={}), "train=5: must be a mapping"),  # type: ignore[arg-type]
        (lambda: genexp.register_metric("name")(5), "the metric name is of type int"),  # type: ignore[type-var]
    ],
)
def test_arguments_of_another_type_are_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(GenexpError, match=re.escape(message)) as excinfo:
        call()
    assert "\n" not in str(excinfo.value)


def test_logging_and_environment_are_restored(saved_run: SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    genexp.run(f"resume={saved_run.path}", "trainer.max_steps=7")
    assert (list(root.handlers), root.level) == before
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert saved_run.metrics["step"].max() == 7


def test_another_application_of_hydra_is_not_disturbed(tmp_path: Path) -> None:
    ConfigStore.instance().store(group="model", name="of_the_application", node={"a": 1})
    with initialize(version_base="1.3", config_path=None):
        run = genexp.run(
            MODEL, "trainer.max_steps=1", *PLUGIN_RUN_OVERRIDES, format_run_dir_override(tmp_path / "run")
        )
        assert run.state == "finished"
        assert compose(overrides=["+model=of_the_application"]) == {"model": {"a": 1}}
    del ConfigStore.instance().repo["model"]["of_the_application.yaml"]


def test_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (REPO_ROOT / "genexp" / "README.md").read_text(encoding="utf-8").partition("## Python")[2]
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert "trainer.epochs=3" in example
    names: dict[str, Any] = {}
    exec(example.replace("trainer.epochs=3", "trainer.max_steps=2"), names)
    assert names["images"].shape == (16, 1, 28, 28)
    assert len(names["runs"]) == len(names["table"]) == 2
