"""Where the jobs of a sweep run makes no difference to what comes of them, however the sweep was stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from genexp.sweep.worker_job import THREAD_VARIABLES, build_thread_env
from tests.support.command import background, genexp, metrics, status
from tests.support.sweeps import BREAKS, SHORT, states, sweep

LONG = ("seed=0,1", "trainer.epochs=60")  # seconds, of which a job needs half of one to hear that it is to stop
JOBLIB = "hydra/launcher=joblib hydra.launcher.n_jobs=2"
WITH_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is no part of dev")
LAUNCHERS = (
    JOBLIB,
    "hydra/launcher=submitit_local",
    pytest.param("hydra/launcher=ray", marks=WITH_RAY),
)


@pytest.fixture(autouse=True, scope="module")
def _no_workers_left() -> Iterator[None]:
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(1).shutdown(wait=True)
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of which one half fails, one job after the other."""
    folder = tmp_path_factory.mktemp("in_turn")
    assert genexp(*sweep(folder, "seed=0,1", BREAKS)).code == 1
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a longer sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert genexp(*sweep(folder, *LONG)).code == 0
    return folder


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def step(folder: Path) -> int:
    """Return how far a run says that it is."""
    try:
        return int(status(folder)["step"])
    except FileNotFoundError:
        return 0


def assert_the_same_jobs(left: Path, right: Path) -> None:
    """Assert that the jobs of two sweeps ended alike, with the same metrics at each step."""
    assert states(left) == states(right)
    for number in states(left):
        assert metrics(left / number) == metrics(right / number)


def resumed(folder: Path, *words: str) -> int:
    return genexp("-m", *SHORT, *words, f"sweep.resume={folder}").code


@pytest.mark.parametrize("words", LAUNCHERS)
def test_jobs_elsewhere_do_what_they_do_here(words: str, in_turn: Path, tmp_path: Path) -> None:
    ended = genexp(*sweep(tmp_path, "seed=0,1", BREAKS, *words.split()))
    assert ended.code == 1
    assert_the_same_jobs(tmp_path, in_turn)
    assert ended.err.startswith("genexp: 2 of 4 jobs failed, first #1 seed=0 optimizer.lr=1000000000.0: the loss")
    assert sum("finished  mse " in line for line in ended.out.splitlines()) == 2


def test_cores_are_divided_where_the_user_has_not_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    assert build_thread_env(4) == {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}
    assert build_thread_env(0)["OMP_NUM_THREADS"] == "1"  # more jobs than cores


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_workers_save_and_go_on(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    with background(*sweep(tmp_path, *LONG, *JOBLIB.split())) as process:
        until(lambda: min(step(tmp_path / name) for name in "01") > 3)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
    assert process.exitcode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    until(lambda: "running" not in states(tmp_path).values())  # also where nobody could tell them
    assert set(states(tmp_path).values()) == {"stopped"}
    assert resumed(tmp_path, *LONG) == 0
    assert_the_same_jobs(tmp_path, whole)


def children(pid: int, word: str) -> list[int]:
    """Return the processes that a process has started, and those that these have, with `word` in their command."""
    found = []
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        if word in Path(f"/proc/{child}/cmdline").read_text():
            found.append(child)
        found += children(child, word)
    return found


def test_a_worker_that_is_killed_costs_no_job(whole: Path, tmp_path: Path) -> None:
    with background(*sweep(tmp_path, *LONG, *JOBLIB.split())) as process:
        until(lambda: min(step(tmp_path / name) for name in "01") > 3)
        assert process.pid is not None
        os.kill(children(process.pid, "LokyProcess")[0], signal.SIGKILL)
        process.join(200)
    assert process.exitcode == 0
    assert_the_same_jobs(tmp_path, whole)


def test_a_job_whose_place_the_scheduler_wants_saves_and_is_queued_again(whole: Path, tmp_path: Path) -> None:
    words = ("hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2")
    with background(*sweep(tmp_path, *LONG, *words)) as process:
        until(lambda: min(step(tmp_path / name) for name in "01") > 3)
        assert process.pid is not None
        before = children(process.pid, "submitit.core._submit")
        for pid in before:
            os.kill(pid, signal.SIGUSR2)
        until(lambda: set(before) & set(children(process.pid or 0, "submitit.core._submit")) == set())
        process.join(200)
    assert process.exitcode == 0
    assert_the_same_jobs(tmp_path, whole)
    log = "".join(path.read_text() for path in (tmp_path / ".submitit").glob("*_log.err"))
    assert log.count("this job is preempted") == 2


@pytest.mark.parametrize("job_step", [(0, 0), (1, 6)])
def test_a_sweep_that_was_killed_ends_with_the_table_of_one_that_was_not(
    job_step: tuple[int, int], in_turn: Path, tmp_path: Path
) -> None:
    words = ("seed=0,1", BREAKS)
    job, at = tmp_path / str(2 * job_step[0]), job_step[1]
    with background(*sweep(tmp_path, *words)) as process:
        until((job / ".hydra").exists)
        until(lambda: step(job) >= at)
        process.kill()
        process.join()
    assert resumed(tmp_path, *words) == 1
    assert_the_same_jobs(tmp_path, in_turn)


@pytest.mark.parametrize(
    "choice", ["launcher=joblib", "launcher=submitit_local", "launcher=ray", "sweeper=optuna"]
)
def test_what_is_not_installed_is_named(choice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ended = genexp(*sweep(tmp_path / "sweep", "seed=0,1", f"hydra/{choice}"))
    package = choice.partition("=")[2].partition("_")[0]
    assert (ended.code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = ended.err.splitlines()
    assert line.endswith(f"needs the package {package}, which is not installed: pip install 'genexp[{package}]'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "hydra/launcher=joblib hydra.launcher.n_jobs=0",
            "hydra.launcher.n_jobs=0: use a whole number of at least 1",
        ),
        ("hydra/launcher=submitit_slurm", "finds no sbatch and srun here"),
        pytest.param("hydra/launcher=ray hydra.launcher.address=127.0.0.1:1", "does not answer", marks=WITH_RAY),
        ("hydra/launcher=joblb", "hydra/launcher=joblb does not exist; did you mean joblib?"),
    ],
)
def test_a_launcher_that_cannot_be_is_refused(words: str, said: str, tmp_path: Path) -> None:
    ended = genexp(*sweep(tmp_path / "sweep", "seed=0,1", *words.split()))
    assert (ended.code, (tmp_path / "sweep").exists()) == (1, False)
    (line,) = ended.err.splitlines()
    assert said in line
