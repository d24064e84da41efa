"""Many models as one computation: each row is the run that its job would be alone."""

from __future__ import annotations

import copy
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from genexp.ensemble.compatibility import IncompatibleRunsError, VaryingHyperparameters
from genexp.ensemble.random_draws import EnsembleFunctionMode, MemberGenerators
from genexp.ensemble.step import EnsembleStep, clip_grad_norm_per_member
from genexp.run_dir.checkpoint import list_checkpoints
from genexp.runs.build import Run, build_run
from genexp.seeding import seed_generators
from genexp.technique import Clock
from genexp.training.learner import Learner
from genexp.training.trainer import initialize_technique
from tests.support.command import background, genexp, last_state, metrics, status
from tests.support.compose import composed, tiny

STEPS = 50
# A number of the model that differs between the rows, beside seed and learning rate.
NUMBERS = {
    "stacked_autoencoder": [],
    "latent3d_autoencoder": [],
    "conv_autoencoder": [],
    "denoising_autoencoder": ["model.noise"],
    "conv_denoising_autoencoder": ["model.noise"],
    "vae": ["model.beta", "model.free_bits"],
    "gan": ["model.dropout"],
    "dcgan": [],
    "cgan": [],
    "wgan_gp": ["model.penalty"],
    "deep_kmeans": ["model.alpha", "model.degrees"],
    "kmeans": ["model.tolerance"],
}
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def built(*words: str, like: Run | None = None) -> Run:
    """Return a run as it is before its first step."""
    looks = ("trainer.evaluate_every=0", "trainer.preview_every=0")
    config = OmegaConf.to_container(composed(*words, *looks), resolve=True)
    assert isinstance(config, dict)
    run = build_run({str(key): value for key, value in config.items()}, None, data_from=like)
    initialize_technique(run.learner, run.data.train, run.seed)
    return run


def alone(run: Run, steps: int = STEPS) -> dict[str, Any]:
    """Return the state of a run after so many steps."""
    batches = run.data.batch_source.iter_batches(1)
    for step in range(1, steps + 1):
        seed_generators(run.learner.device, run.seed, step)
        run.learner.step(next(batches), run.data.train, Clock(step, steps, run.data.batch_source.steps_per_epoch))
    return copy.deepcopy(run.learner.state_dict())


def together(runs: list[Run], steps: int = STEPS) -> list[dict[str, Any]]:
    """Return the states of runs that learn as one."""
    stack = EnsembleStep([run.learner for run in runs], [run.seed for run in runs])
    feeds = [run.data.batch_source.iter_batches(1) for run in runs]
    for step in range(1, steps + 1):
        each = [next(feed) for feed in feeds]
        batch = {name: torch.stack([part[name] for part in each]) for name in each[0]}
        clock = Clock(step, steps, runs[0].data.batch_source.steps_per_epoch)
        stack.step(batch, False, runs[0].data.train, clock)
    stack.update_members()
    return [run.learner.state_dict() for run in runs]


def assert_close(left: Any, right: Any, tolerance: float, where: str = "state") -> None:
    """Assert that nested values are equal, tensors up to rounding: relative to their largest number."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor) and left.is_floating_point():
        assert left.shape == right.shape, where
        scale = max(1e-3, float(right.abs().max())) if right.numel() else 1.0
        assert float((left - right).abs().max() if right.numel() else 0.0) <= tolerance * scale, where
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_close(left[key], right[key], tolerance, f"{where}.{key}")
    elif isinstance(left, list | tuple):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_close(a, b, tolerance, f"{where}[{index}]")
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=max(tolerance, 1e-12)), where
    else:
        assert left == right, where


def variants(name: str) -> list[list[str]]:
    """Return the words of two runs that differ in numbers."""
    lr = composed(f"model={name}").model.recipe.lr
    small = {"gan": ["model.hidden=[16,32]"], "vae": ["model.hidden=[32,16]"]}.get(name, [])
    small += ["dataset=digits"] if "gan" in name else []  # of 8 pixels a side
    return [
        [
            *tiny(name),
            *small,
            f"seed={seed}",
            f"optimizer.lr={factor * lr}",
            *(f"{key}={number}" for key in NUMBERS[name]),
        ]
        for seed, factor, number in ((1, 1, 0.1), (2, 0.5, 0.2))
    ]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_row_is_the_run_alone(name: str) -> None:
    """Weights, buffers, averages and the optimizers' state are equal after fifty steps in float64."""
    words = variants(name)
    expected = [alone(built(*each)) for each in words]
    first = built(*words[0])
    found = together([first, built(*words[1], like=first)])
    for row, run in zip(found, expected, strict=True):
        # A bias before batch normalization has a gradient of rounding errors only, which Adam makes steps of.
        assert_close(row, run, 1e-7)


def test_a_row_is_close_to_the_run_alone_in_float32() -> None:
    words = [[*each, "trainer.precision=fp32"] for each in variants("vae")]
    expected = [alone(built(*each)) for each in words]
    first = built(*words[0])
    for row, run in zip(together([first, built(*words[1], like=first)]), expected, strict=True):
        assert_close(row["technique"], run["technique"], 1e-3)


def test_rows_multiply_as_the_runs_alone_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    seen: list[str] = []

    def noticing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **words: Any) -> Any:
            seen.append(matmul.fp32_precision)
            return function(*arguments, **words)

        return call

    monkeypatch.setattr(EnsembleStep, "compute_losses", noticing(EnsembleStep.compute_losses))
    monkeypatch.setattr(torch.Tensor, "backward", noticing(torch.Tensor.backward))
    words = [[*each, "trainer.precision=bf32"] for each in variants("vae")]
    first = built(*words[0])
    together([first, built(*words[1], like=first)], steps=1)
    assert seen == ["bf16", "bf16"]
    assert matmul.fp32_precision != "bf16"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=sgd", "optimizer.lr=0.1,0.01", "optimizer.momentum=0.9,0.0"],
        ["optimizer=rmsprop", "optimizer.weight_decay=0.0,0.1"],
        ["optimizer=adadelta"],
        ["optimizer=adamw", "optimizer.betas=[0.9,0.99],[0.5,0.9]", "optimizer.schedule=linear,constant"],
        ["trainer.gradient_clip=0.01", "trainer.ema=0.9"],
    ],
)
def test_every_elementwise_optimizer_steps_rows_as_runs(words: list[str]) -> None:
    pairs = [word.partition("=") for word in words]
    values = {
        key: value.replace("],[", "]|[").replace(",", "|") if "[" not in value else value
        for key, _, value in pairs
    }
    each: list[list[str]] = [[], []]
    for key, value in values.items():
        options = value.split("|") if "[" not in value else value.replace("],[", "]|[").split("|")
        for row in (0, 1):
            each[row].append(f"{key}={options[min(row, len(options) - 1)]}")
    runs = [[*tiny("stacked_autoencoder"), f"seed={row}", *each[row]] for row in (0, 1)]
    expected = [alone(built(*run), 10) for run in runs]
    first = built(*runs[0])
    for state, wanted in zip(together([first, built(*runs[1], like=first)], 10), expected, strict=True):
        assert_close(state, wanted, 1e-10)


@pytest.mark.usefixtures("float64")
def test_rows_that_go_on_together_need_not_have_begun_together() -> None:
    words = [[*tiny("gan"), f"seed={seed}"] for seed in (1, 2, 3)]
    expected = [alone(built(*each), 8) for each in words]
    runs = [built(*each) for each in words]
    batches = [run.data.batch_source.iter_batches(1) for run in runs]
    for first, last, rows in ((1, 4, [0, 1, 2]), (5, 8, [0, 2])):
        stack = EnsembleStep([runs[row].learner for row in rows], [runs[row].seed for row in rows])
        for step in range(first, last + 1):
            parts = [next(batches[row]) for row in rows]
            batch = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
            clock = Clock(step, 8, runs[0].data.batch_source.steps_per_epoch)
            stack.step(batch, False, runs[0].data.train, clock)
        stack.update_members()
    for row in (0, 2):
        assert_close(runs[row].learner.state_dict(), expected[row], 1e-9)


def test_an_unknown_random_function_is_refused() -> None:
    rows = [MemberGenerators(), MemberGenerators()]
    for row in rows:
        row.seed(0)

    def draw(index: torch.Tensor) -> torch.Tensor:
        with EnsembleFunctionMode(rows, VaryingHyperparameters([]), index):
            return torch.poisson(torch.ones(3))

    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(draw, randomness="error")(torch.arange(2))


def test_dropout_between_convolutions_is_left_to_runs_alone() -> None:
    words = [[*tiny("dcgan"), "model.dropout=0.5", f"seed={seed}"] for seed in (1, 2)]
    first = built(*words[0])
    with pytest.raises(IncompatibleRunsError, match="dropout between convolutions"):
        together([first, built(*words[1], like=first)], 1)


def test_what_is_more_than_a_number_is_named() -> None:
    one = [built(*tiny("stacked_autoencoder"), f"model.activation={name}") for name in ("relu", "tanh")]
    with pytest.raises(IncompatibleRunsError, match="activation"):
        VaryingHyperparameters([run.learner.technique for run in one])
    one = [built(*tiny("stacked_autoencoder"), f"model.widths={widths}") for widths in ("[8,4]", "[8,3]")]
    with pytest.raises(IncompatibleRunsError, match="widths"):
        VaryingHyperparameters([run.learner.technique for run in one])


def test_gradients_are_clipped_row_by_row() -> None:
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[4.0], [0.4]])]
    assert clip_grad_norm_per_member(gradients, 1.0).tolist() == pytest.approx([5.0, 0.5])
    assert gradients[0].tolist() == [pytest.approx([0.6, 0.0]), pytest.approx([0.3, 0.0])]
    assert gradients[1].flatten().tolist() == pytest.approx([0.8, 0.4])


SHORT = (*tiny("stacked_autoencoder"), "trainer.epochs=3")


def sweep(folder: Path, *words: str, short: tuple[str, ...] = SHORT) -> list[str]:
    """Return the command of a sweep as one computation."""
    forced = ("hydra/launcher=vectorized", "hydra.launcher.measure=false")
    return ["-m", *short, *forced, *words, f"hydra.sweep.dir={folder}"]


def assert_same_curves(left: Path, right: Path) -> None:
    """Assert that two runs have measured the same things at the same steps, up to rounding."""
    for one, other in zip(metrics(left), metrics(right), strict=True):
        assert one.keys() == other.keys()
        assert [one[key] for key in one if key != "split"] == pytest.approx(
            [other[key] for key in other if key != "split"], rel=1e-3
        )


def contents(folder: Path) -> set[str]:
    """Return the names of all files of a run."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_job_leaves_what_a_single_run_leaves_and_resumes_as_one(tmp_path: Path) -> None:
    ended = genexp(*sweep(tmp_path / "sweep", "seed=1,2", "optimizer.lr=1e-3,1e-2"))
    assert ended.code == 0, ended.err
    assert "jobs #0 to #3 as one computation" in ended.out
    assert genexp(*SHORT, "seed=2", "optimizer.lr=1e-2", f"hydra.run.dir={tmp_path / 'run'}").code == 0
    job, run = tmp_path / "sweep" / "3", tmp_path / "run"
    assert contents(job) == contents(run)
    assert_same_curves(job, run)
    assert (job / "config.yaml").read_text() == (run / "config.yaml").read_text()
    assert_close(last_state(job), last_state(run), 1e-2)
    newest, straight = (list_checkpoints(folder)[0].stat().st_size for folder in (job, run))
    assert newest == pytest.approx(straight, rel=0.01)
    assert "epoch 3/3" in (job / "train.log").read_text()
    assert (job / "train.log").read_text().count("epoch 3/3") == 1
    for folder in (job, run):
        assert genexp(f"resume={folder}", "trainer.epochs=4").code == 0
    assert_same_curves(job, run)


def test_a_row_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    ended = genexp(*sweep(tmp_path / "sweep", "optimizer.lr=1e-3,1e9,1e-2"))
    assert ended.code == 1
    assert "1 of 3 jobs failed, first #1" in ended.err
    states = {number: status(tmp_path / "sweep" / str(number)) for number in range(3)}
    assert [states[number]["state"] for number in range(3)] == ["finished", "failed", "finished"]
    assert "lower optimizer.lr" in states[1]["error"]
    assert genexp(*SHORT, "optimizer.lr=1e-2", f"hydra.run.dir={tmp_path / 'run'}").code == 0
    assert_same_curves(tmp_path / "sweep" / "2", tmp_path / "run")


def test_jobs_at_different_steps_go_on(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    often = ("trainer.keep_checkpoints=9", "seed=range(3)", "trainer.preview_every=0")
    assert genexp(*sweep(straight, *often)).code == 0
    shutil.copytree(straight, killed)
    for number, kept in ((0, 1), (1, 2), (2, 2)):  # as if killed behind so many checkpoints
        for file in list_checkpoints(killed / str(number))[:-kept]:
            file.unlink()
        (killed / str(number) / "status.json").unlink()
    words = sweep(killed, *often)[:-1]
    ended = genexp(*words, f"sweep.resume={killed}")
    assert ended.code == 0, ended.err
    assert "jobs #1, #2 as one computation" in ended.out
    for number in range(3):
        assert_same_curves(straight / str(number), killed / str(number))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer=lbfgs", "seed=0,1"], "jobs #0, #1 one after the other: a step of optimizer=lbfgs"),
        (["model.widths=[8,4],[8,3]"], "jobs #0, #1 one after the other: they differ in model.widths"),
        (["model=deep_kmeans", "model.pretrain=0.2,0.8"], "what is computed depends on model.pretrain"),
    ],
)
def test_what_cannot_be_one_computation_runs_one_after_the_other_and_is_said(
    words: list[str], said: str, tmp_path: Path
) -> None:
    short = (
        *tiny("deep_kmeans" if "model=deep_kmeans" in words else "stacked_autoencoder"),
        "trainer.max_steps=2",
    )
    words = [word for word in words if word != "model=deep_kmeans"]
    ended = genexp(*sweep(tmp_path, *words, short=short))
    assert ended.code == 0, ended.err
    assert said in ended.out
    assert all(status(tmp_path / number)["state"] == "finished" for number in "01")


def test_what_is_measured_is_said(tmp_path: Path) -> None:
    words = [word for word in sweep(tmp_path, "seed=0,1") if "measure" not in word]
    ended = genexp(*words)
    assert ended.code == 0, ended.err
    assert "ms a step of all, one after the other" in ended.out


def test_a_signal_stops_all_rows_and_they_go_on(tmp_path: Path) -> None:
    endless = (*tiny("stacked_autoencoder"), "trainer.epochs=1000000", "trainer.preview_every=0")
    words = sweep(tmp_path, "seed=0,1", "trainer.evaluate_every=0", short=endless)
    with background(*words) as process:
        deadline = time.monotonic() + 120
        while not all((tmp_path / n / "metrics.jsonl").is_file() and metrics(tmp_path / n) for n in "01"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert process.pid is not None
        signal_sent = signal.SIGINT
        __import__("os").kill(process.pid, signal_sent)
        process.join(60)
        assert process.exitcode == 130
    steps = [status(tmp_path / number)["step"] for number in "01"]
    assert [status(tmp_path / number)["state"] for number in "01"] == ["stopped", "stopped"]
    assert steps[0] == steps[1] == last_state(tmp_path / "0")["step"]
    shutil.copytree(tmp_path / "1", tmp_path / "alone")
    ended = genexp(f"resume={tmp_path / 'alone'}", f"trainer.max_steps={steps[0] + 3}")
    assert ended.code == 0, ended.err


def test_stacked_learners_stay_whole() -> None:
    """A learner's own technique is a row of the common weights: looking at it needs no copy."""
    runs = [built(*tiny("stacked_autoencoder"), f"seed={seed}") for seed in (0, 1)]
    before = [next(learner.technique.parameters()).detach().clone() for learner in _learners(runs)]
    together(runs, 1)
    for learner, weight in zip(_learners(runs), before, strict=True):
        assert not torch.equal(next(learner.technique.parameters()), weight)


def _learners(runs: list[Run]) -> list[Learner]:
    return [run.learner for run in runs]
