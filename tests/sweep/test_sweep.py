"""Sweeps: jobs, summaries, failures, errors and the manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from genexp.config import find_config_dir
from genexp.sweep.config import JobComposer
from tests.support.command import (
    list_file_names,
    load_status,
    read_metrics_log,
    run_genexp,
)
from tests.support.sweeps import (
    DIVERGING_LR_OVERRIDE,
    ONE_STEP_RUN_OVERRIDES,
    SHORT_RUN_OVERRIDES,
    load_job_states,
    make_sweep_arguments,
)


@pytest.mark.parametrize(
    "jobs",
    [
        [["seed=1"], ["seed=2"], ["seed=3", "optimizer.lr=0.1"], ["seed=4", "optimizer.lr=1e-3"]],
        [["model=vae", "notes='a: b'"], ["model=gan", "notes=null"], ["model=vae", "notes=${dataset.name}"]],
        [["model=gan", "model.latent=4", "++a=[b]"], ["model=gan", "model.latent=8", "++a=[c]"]],
        [["~optimizer.schedule", "hydra.job.name=a"], ["hydra.job.name=b", "~optimizer.schedule"]],
        [["dataset=mnist_5k", "seed=1"], ["dataset=digits", "seed=2"], ["dataset=digits", "seed=3"]],
        [["hydra/job_logging=none", "trainer=quick"], ["hydra/job_logging=disabled", "trainer=quick"]],
    ],
)
def test_composed_jobs_equal_those_of_hydra(jobs: list[list[str]]) -> None:
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        sweep_config = compose("train", overrides=["model=stacked_autoencoder"], return_hydra_config=True)
        HydraConfig.instance().set_config(sweep_config)
        loader = GlobalHydra.instance().config_loader()
        composer = JobComposer(loader, sweep_config)
        for overrides in jobs:
            expected, config = loader.load_sweep_config(sweep_config, overrides), composer.compose(overrides)
            assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected)
            assert OmegaConf.is_struct(config)
            assert config.hydra._metadata.flags == expected.hydra._metadata.flags


def test_two_hundred_jobs_are_composed_by_few_compositions(monkeypatch: pytest.MonkeyPatch) -> None:
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        sweep_config = compose("train", return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        full_compositions: list[list[str]] = []
        load_sweep_config = loader.load_sweep_config

        def load_and_record(config: DictConfig, overrides: list[str]) -> DictConfig:
            full_compositions.append(overrides)
            return load_sweep_config(config, overrides)

        monkeypatch.setattr(loader, "load_sweep_config", load_and_record)
        composer = JobComposer(loader, sweep_config)
        jobs = [[f"model={model}", f"seed={seed}"] for model in ("vae", "gan") for seed in range(100)]
        seeds = [composer.compose(overrides).seed for overrides in jobs]
    assert seeds == [*range(100), *range(100)]
    assert full_compositions == [["model=vae", "seed=0"], ["model=gan", "seed=0"]]


@pytest.mark.parametrize("wrong", ["seed=-1", "seed=1.5", "seed=true", "seed=null", "optimizer.lr=-1"])
def test_every_job_is_checked_before_the_first_one_starts(wrong: str, tmp_path: Path) -> None:
    key, value = wrong.split("=")
    good = "0" if key == "seed" else "1e-3"
    result = run_genexp(*make_sweep_arguments(tmp_path, f"{key}={good},{value}"))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"genexp: {key}=")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "0").exists()


def test_job_equals_a_single_run(tmp_path: Path) -> None:
    assert run_genexp(*make_sweep_arguments(tmp_path / "sweep", "seed=1,2")).exit_code == 0
    assert run_genexp(*SHORT_RUN_OVERRIDES, "seed=2", f"hydra.run.dir={tmp_path / 'run'}").exit_code == 0
    job = tmp_path / "sweep" / "1"
    folders = (job, tmp_path / "run")  # the jobs of a sweep share the script of their pages
    names = [sorted({*list_file_names(folder)} - {".assets"}) for folder in folders]
    assert names[0] == names[1]
    assert read_metrics_log(job) == read_metrics_log(tmp_path / "run")
    assert (job / "config.yaml").read_text() == (tmp_path / "run" / "config.yaml").read_text()
    assert run_genexp(f"resume={job}", "trainer.epochs=3").exit_code == 0
    assert load_status(job)["epoch"] == 3


def test_sweep_prints_one_line_per_job(tmp_path: Path) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path, "seed=1,2", "optimizer.lr=1e-3,1e-2"))
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert sum("finished  mse " in line for line in lines) == 4
    assert not any("epoch" in line for line in lines)
    assert any(line.startswith("best mse ") for line in lines)
    for number in range(4):
        assert "epoch 2/2" in (tmp_path / str(number) / "train.log").read_text()


def test_sweep_ends_with_a_comparison_and_a_report(tmp_path: Path) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path, "seed=1,2", "optimizer.lr=1e-3,1e-2"))
    assert "2 settings, mean ± standard error over seeds, by mse, lowest first" in result.stdout
    assert "paired t-test on 2 common seeds" in result.stdout
    assert "4 jobs: 4 finished" in result.stdout
    assert "4 runs: stacked_autoencoder on mnist_5k" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_job_does_not_stop_the_others(tmp_path: Path) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path, DIVERGING_LR_OVERRIDE, "seed=0,1"))
    assert result.exit_code == 1
    assert load_job_states(tmp_path) == {"0": "finished", "1": "finished", "2": "failed", "3": "failed"}
    (line,) = result.stderr.splitlines()
    assert line.startswith("genexp: 2 of 4 jobs failed. The first is #2 optimizer.lr=1e+30 seed=0: the loss")
    assert "Use a smaller optimizer.lr" in load_status(tmp_path / "2")["error"]
    assert result.stdout.count("Use a smaller optimizer.lr") >= 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_absent_fails_its_job_only(tmp_path: Path) -> None:
    """The table has a column for each swept setting, and none for common ones such as `recorders.report=false`."""
    result = run_genexp(*make_sweep_arguments(tmp_path, "device=cpu,cuda", "recorders.report=false"))
    assert result.exit_code == 1
    assert load_job_states(tmp_path) == {"0": "finished", "1": "failed"}
    (line,) = result.stderr.splitlines()
    assert line.startswith("genexp: 1 of 2 jobs failed. The first is #1 device=cuda: device=cuda: not available")
    assert line.endswith("Use device=cpu.")
    lines = result.stdout.splitlines()
    header = next(index for index, line in enumerate(lines) if line.split()[:1] == ["run"])
    assert lines[header].split()[:3] == ["run", "device", "seed"]
    assert [line.split()[:2] for line in lines[header + 2 : header + 4]] == [["0", "cpu"], ["1", "cuda"]]


def test_fail_fast_starts_no_further_job(tmp_path: Path) -> None:
    result = run_genexp(
        *make_sweep_arguments(tmp_path, "optimizer.lr=1e30,1e-3", "seed=0,1", "sweep.fail_fast=true")
    )
    assert result.exit_code == 1
    assert load_job_states(tmp_path) == {"0": "failed"}
    assert "4 jobs: 1 failed, 3 waiting" in result.stdout


def test_a_job_that_fails_before_its_first_step_is_recorded_too(tmp_path: Path) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path, "trainer.batch_size=8,600"))
    assert result.exit_code == 1
    state = load_status(tmp_path / "1")
    assert (state["state"], state["model"]) == ("failed", "stacked_autoencoder")
    assert "trainer.batch_size=600: exceeds" in state["error"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=1,2"], "Did you mean optimizer.lr?"),
        (["optimizer=adam,adm"], "optimizer=adm: unknown name. Did you mean adam?"),
        (["optimizer.lr=1e-3,-1"], "optimizer.lr=-1.0: must be positive and finite."),
        (["model.activation=relu,step"], "model.activation=step: must be one of"),
        (["dataset.limit=40,0"], "dataset.limit=0: must be at least 1"),
        (["seed=0,1", "sweep.fast=true"], "sweep.fast: unknown key"),
        (["seed=0,1", "sweep.resume=absent"], "sweep.resume=absent: not a sweep directory"),
    ],
)
def test_invalid_overrides_are_rejected_before_any_job_starts(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path / "sweep", *overrides))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "sweep").exists()


def test_sweep_resume_requires_multirun(tmp_path: Path) -> None:
    assert "resumes a sweep. Add -m" in run_genexp(*SHORT_RUN_OVERRIDES, f"sweep.resume={tmp_path}").stderr


def test_second_sweep_cannot_reuse_the_directory(tmp_path: Path) -> None:
    assert run_genexp(*make_sweep_arguments(tmp_path, "seed=0,1")).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = run_genexp(*make_sweep_arguments(tmp_path, "seed=5,6"))
    assert "already contains a sweep. Use sweep.resume=" in result.stderr
    result = run_genexp("-m", *SHORT_RUN_OVERRIDES, "seed=5,6", f"sweep.resume={tmp_path}")
    assert result.exit_code == 1
    assert ": not the same sweep (job 0 was seed=0, now seed=5)" in result.stderr
    result = run_genexp(
        "-m", *SHORT_RUN_OVERRIDES, "seed=0,1", "model.latent_activation=tanh", f"sweep.resume={tmp_path}"
    )
    assert "job 0 had other values" in result.stderr
    assert before == {path: path.read_bytes() for path in before}


def test_manifest_lists_the_overrides_of_each_job(tmp_path: Path) -> None:
    common_overrides = ("optimizer.lr=1e-3", "recorders.csv=false")  # Hydra formats both differently
    assert run_genexp(*make_sweep_arguments(tmp_path, "seed=0,1", *common_overrides)).exit_code == 0
    jobs = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    assert [(job["number"], job["overrides"], job["direction"]) for job in jobs] == [
        (0, ["seed=0"], "min"),
        (1, ["seed=1"], "min"),
    ]
    assert "sweep" not in yaml.safe_load((tmp_path / "0" / "config.yaml").read_text())


def test_sweep_has_one_run_directory_per_job(tmp_path: Path) -> None:
    result = run_genexp("-m", *ONE_STEP_RUN_OVERRIDES, "seed=range(2)", f"hydra.sweep.dir={tmp_path}")
    assert result.exit_code == 0, result.stderr
    for number in range(2):
        assert yaml.safe_load((tmp_path / str(number) / "config.yaml").read_text())["seed"] == number
        assert load_status(tmp_path / str(number))["state"] == "finished"


def test_sweep_over_config_groups_has_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The option may be anywhere among the overrides.
    overrides = [word for word in ONE_STEP_RUN_OVERRIDES if not word.startswith("model")]
    result = run_genexp("model=vae,gan", "dataset=mnist_5k,digits", "-m", *overrides)
    assert result.exit_code == 0, result.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert {"0", "1", "2", "3", "multirun.yaml", "sweep.json", "report.html", ".lock"} == {
        path.name for path in sweep.iterdir()
    }
    jobs = [load_status(sweep / str(number)) for number in range(4)]
    assert [(job["model"], job["dataset"]) for job in jobs] == [
        ("vae", "mnist_5k"),
        ("vae", "digits"),
        ("gan", "mnist_5k"),
        ("gan", "digits"),
    ]
    # Each job has the recipe of its own model.
    optimizers = [
        yaml.safe_load((sweep / str(number) / "config.yaml").read_text())["optimizer"] for number in (0, 2)
    ]
    assert optimizers[0]["betas"] != optimizers[1]["betas"]
