"""Launchers: equal results, stopping, killed workers, preemption and errors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.types import HydraContext
from omegaconf import DictConfig

from genexp.sweep.job import Job
from tests.support.command import load_status, read_metrics_log, run_genexp, start_genexp, wait_for
from tests.support.sweeps import DIVERGING_LR_OVERRIDE, SHORT_RUN_OVERRIDES, load_job_states, make_sweep_arguments

LONG_SWEEP = (
    "seed=0,1",
    "trainer.epochs=40",
)  # lasts seconds; a job stops within half a second
JOBLIB = "hydra/launcher=joblib hydra.launcher.n_jobs=2"
NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not part of the extra dev")
LAUNCHERS = (
    JOBLIB,
    "hydra/launcher=submitit_local",
    pytest.param("hydra/launcher=ray", marks=(NEEDS_RAY, pytest.mark.slow)),
)


@pytest.fixture(autouse=True, scope="module")
def _shut_down_workers() -> Iterator[None]:
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(1).shutdown(wait=True)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def sequential_sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep with sequential jobs of which half fail."""
    folder = tmp_path_factory.mktemp("in_turn")
    assert run_genexp(*make_sweep_arguments(folder, "seed=0", DIVERGING_LR_OVERRIDE)).exit_code == 1
    return folder


@pytest.fixture(scope="module")
def uninterrupted_sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a longer sweep that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_genexp(*make_sweep_arguments(folder, *LONG_SWEEP)).exit_code == 0
    return folder


def load_step(run_dir: Path) -> int:
    """Return the step in a run's status, 0 without a status."""
    try:
        return int(load_status(run_dir)["step"])
    except FileNotFoundError:
        return 0


def assert_same_jobs(left: Path, right: Path) -> None:
    """Assert that the jobs of two sweeps have the same states and the same metrics at each step."""
    assert load_job_states(left) == load_job_states(right)
    for number in load_job_states(left):
        assert read_metrics_log(left / number) == read_metrics_log(right / number)


def resume_sweep(sweep_dir: Path, *overrides: str) -> int:
    return run_genexp("-m", *SHORT_RUN_OVERRIDES, *overrides, f"sweep.resume={sweep_dir}").exit_code


@pytest.mark.parametrize("overrides", LAUNCHERS)
def test_every_launcher_gives_the_results_of_the_basic_launcher(
    overrides: str, sequential_sweep_dir: Path, tmp_path: Path
) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path, "seed=0", DIVERGING_LR_OVERRIDE, *overrides.split()))
    assert result.exit_code == 1
    assert_same_jobs(tmp_path, sequential_sweep_dir)
    assert result.stderr.startswith("genexp: 1 of 2 jobs failed. The first is #1 optimizer.lr=1e+30: the loss")
    assert sum("finished  mse " in line for line in result.stdout.splitlines()) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_stopped_workers_save_and_can_be_resumed(
    signum: signal.Signals, uninterrupted_sweep_dir: Path, tmp_path: Path
) -> None:
    with start_genexp(*make_sweep_arguments(tmp_path, *LONG_SWEEP, *JOBLIB.split())) as process:
        wait_for(lambda: min(load_step(tmp_path / name) for name in "01") > 3, seconds=120)
        assert process.pid is not None
        os.kill(process.pid, signum)
        process.join(60)
    assert process.exitcode == (130 if signum == signal.SIGINT else -signal.SIGKILL)
    wait_for(
        lambda: "running" not in load_job_states(tmp_path).values(), seconds=120
    )  # also where the launcher was killed and could not signal them
    assert set(load_job_states(tmp_path).values()) == {"stopped"}
    assert resume_sweep(tmp_path, *LONG_SWEEP) == 0
    assert_same_jobs(tmp_path, uninterrupted_sweep_dir)


def find_descendants(pid: int, command_part: str) -> list[int]:
    """Return the descendants of a process whose command contains `command_part`."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        if command_part in Path(f"/proc/{child}/cmdline").read_text():
            found.append(child)
        found += find_descendants(child, command_part)
    return found


@pytest.mark.slow
def test_job_of_a_killed_worker_is_restarted(uninterrupted_sweep_dir: Path, tmp_path: Path) -> None:
    with start_genexp(*make_sweep_arguments(tmp_path, *LONG_SWEEP, *JOBLIB.split())) as process:
        wait_for(lambda: min(load_step(tmp_path / name) for name in "01") > 3, seconds=120)
        assert process.pid is not None
        os.kill(find_descendants(process.pid, "LokyProcess")[0], signal.SIGKILL)
        process.join(200)
    assert process.exitcode == 0
    assert_same_jobs(tmp_path, uninterrupted_sweep_dir)


def test_preempted_job_saves_and_is_requeued(uninterrupted_sweep_dir: Path, tmp_path: Path) -> None:
    overrides = ("hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2")
    with start_genexp(*make_sweep_arguments(tmp_path, *LONG_SWEEP, *overrides)) as process:
        wait_for(lambda: min(load_step(tmp_path / name) for name in "01") > 3, seconds=120)
        assert process.pid is not None
        before = find_descendants(process.pid, "submitit.core._submit")
        for pid in before:
            os.kill(pid, signal.SIGUSR2)
        wait_for(
            lambda: set(before) & set(find_descendants(process.pid or 0, "submitit.core._submit")) == set(),
            seconds=120,
        )
        process.join(200)
    assert process.exitcode == 0
    assert_same_jobs(tmp_path, uninterrupted_sweep_dir)
    log = "".join(path.read_text() for path in (tmp_path / ".submitit").rglob("*_log.err"))
    assert log.count("this job is preempted") == 2


@pytest.mark.parametrize("killed_job_and_step", [pytest.param((0, 0), marks=pytest.mark.slow), (1, 6)])
def test_killed_and_resumed_sweep_equals_uninterrupted_sweep(
    killed_job_and_step: tuple[int, int], uninterrupted_sweep_dir: Path, tmp_path: Path
) -> None:
    job, min_step = tmp_path / str(killed_job_and_step[0]), killed_job_and_step[1]
    with start_genexp(*make_sweep_arguments(tmp_path, *LONG_SWEEP)) as process:
        wait_for((job / ".hydra").exists, seconds=120)
        wait_for(lambda: load_step(job) >= min_step, seconds=120)
        process.kill()
        process.join()
    assert resume_sweep(tmp_path, *LONG_SWEEP) == 0
    assert_same_jobs(tmp_path, uninterrupted_sweep_dir)


def test_worker_that_dies_before_its_job_has_a_status_does_not_restart_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = import_module("hydra_plugins.genexp_joblib_launcher").JoblibLauncher(n_jobs=2)
    jobs = [Job(number, tmp_path / str(number), DictConfig({}), HydraContext(None, None)) for number in (0, 1, 2)]  # type: ignore[arg-type]
    started: list[list[int]] = []
    crashed: list[int] = []

    def start_and_lose_all_but_job_1(jobs: Sequence[Job]) -> list[Job]:
        started.append([job.number for job in jobs])
        return [job for job in jobs if len(jobs) > 1 or job.number != 1]

    monkeypatch.setattr(launcher, "_run_in_pool", start_and_lose_all_but_job_1)
    monkeypatch.setattr(launcher, "record_crash", lambda job, reason: crashed.append(job.number))
    monkeypatch.setattr(
        launcher, "stop_jobs_on_signal", lambda: nullcontext(SimpleNamespace(received_signal=None))
    )
    launcher.execute(jobs)
    assert started == [[0, 1, 2], [0], [1], [2], []]
    assert crashed == [0, 2]


@pytest.mark.parametrize(
    "group_choice", ["launcher=joblib", "launcher=submitit_local", "launcher=ray", "sweeper=optuna"]
)
def test_missing_package_is_reported(group_choice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run_genexp(*make_sweep_arguments(tmp_path / "sweep", "seed=0,1", f"hydra/{group_choice}"))
    package = group_choice.partition("=")[2].partition("_")[0]
    assert (result.exit_code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = result.stderr.splitlines()
    assert line.endswith(f"requires the package {package}. Run `pip install 'genexp[{package}]'`.")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "hydra/launcher=joblib hydra.launcher.n_jobs=0",
            "hydra.launcher.n_jobs=0: must be an integer of at least 1",
        ),
        ("hydra/launcher=submitit_slurm", "sbatch and srun not found"),
        pytest.param("hydra/launcher=ray hydra.launcher.address=127.0.0.1:1", "no connection", marks=NEEDS_RAY),
        ("hydra/launcher=joblb", "hydra/launcher=joblb: unknown name. Did you mean joblib?"),
    ],
)
def test_invalid_launcher_settings_are_rejected(overrides: str, message: str, tmp_path: Path) -> None:
    result = run_genexp(*make_sweep_arguments(tmp_path / "sweep", "seed=0,1", *overrides.split()))
    assert (result.exit_code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = result.stderr.splitlines()
    assert message in line
