"""What a user types, and what comes back."""

from __future__ import annotations

import io
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from genexp.data import list_datasets
from genexp.recorders.progress_bar import LiveProgressBar, ProgressState
from genexp.technique import list_techniques
from tests.support.command import REPOSITORY, background, genexp, in_folder, metrics, status
from tests.support.compose import tiny

# The model whose runs end soonest.
SHORT = (
    *tiny("stacked_autoencoder"),
    "trainer.max_steps=1",
    "trainer.preview_every=0",
    "trainer.evaluate_every=0",
)
COMMAND = Path(sys.executable).parent / "genexp"
ENTRY_POINTS: tuple[tuple[str | Path, ...], ...] = (
    (COMMAND,),
    (sys.executable, "-m", "genexp.train"),
    (sys.executable, REPOSITORY / "scripts" / "train.py"),
)
# Runs the command line, and fails where torch or what takes as long to import came with it.
LIGHT = """
import sys
from genexp.train import main
try:
    main()
except SystemExit as ending:
    assert not ending.code, ending.code
heavy = {"torch", "torchvision", "matplotlib", "sklearn", "scipy", "tensorboardX"} & set(sys.modules)
assert not heavy, heavy
"""


def shell(*command: str | Path, **environment: str) -> str:
    """Run a command in a process of its own and return what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_is_a_page_that_lists_every_technique_and_data_set() -> None:
    ended = genexp("--help")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    unwrapped = re.sub(r",\n +", ", ", ended.out).splitlines()
    listed = {line.partition(":")[0].strip(): re.findall(r"\w+", line.partition(":")[2]) for line in unwrapped}
    assert set(list_techniques()) <= set(listed["model"])
    assert set(list_datasets()) <= set(listed["dataset"])
    assert {"vae", "vae_reference"} <= set(listed["experiment"])
    assert "resume=FOLDER" in ended.out
    assert "TAB completion" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "genexp experiment=vae"),
        (["--cfg", "job", "model=vae"], "kl_warmup_epochs: 5"),
        (["-sc", "install=bash"], "hydra_bash_completion"),
        (["-sc", "query=bash"], "model=vae"),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) else "",
)
def test_questions_are_answered_without_torch(words: list[str], said: str) -> None:
    line = "genexp model=v"
    assert said in shell(sys.executable, "-c", LIGHT, *words, COMP_LINE=line, COMP_POINT=str(len(line)))


def test_questions_are_answered_within_a_second() -> None:
    """Of processor time, which a busy machine does not stretch."""
    for words in (["--help"], ["--cfg", "job"]):
        before = os.times()
        shell(COMMAND, *words)
        after = os.times()
        assert after.children_user + after.children_system - before.children_user - before.children_system < 1


def test_the_entry_points_print_the_same_configuration() -> None:
    words = ("model=vae", "optimizer=sgd", "--cfg", "job")
    first, *others = (shell(*entry_point, *words) for entry_point in ENTRY_POINTS)
    assert yaml.safe_load(first)["optimizer"]["name"] == "sgd"
    assert others == [first, first]


def test_the_entry_points_train_alike_and_leave_the_same_files(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(len(ENTRY_POINTS))]
    for entry_point, folder in zip(ENTRY_POINTS, folders, strict=True):
        shell(*entry_point, *SHORT, in_folder(folder))
    first, *others = folders
    assert metrics(first)
    for folder in others:
        assert metrics(folder) == metrics(first)
        assert (folder / "config.yaml").read_bytes() == (first / "config.yaml").read_bytes()
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in first.iterdir())


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=("command", "module", "script"))
def test_an_entry_point_sweeps_and_names_the_key_of_an_error(
    entry_point: Sequence[str | Path], tmp_path: Path
) -> None:
    words = ["-m", *SHORT, "dataset.limit=40,4", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    environment = {**os.environ, "HYDRA_FULL_ERROR": "0"}
    done = subprocess.run(
        [*entry_point, *words], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("genexp: 1 of 2 jobs failed, first #1 dataset.limit=4: trainer.batch_size=8 ")
    assert {number: status(tmp_path / "sweep" / number)["state"] for number in "01"} == {
        "0": "finished",
        "1": "failed",
    }


def test_the_loss_is_readable_on_a_narrow_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    standing = ProgressState(99, 2000, 1, 100, 123.4, 12_340.0, {"loss": 0.24231}, {}, "best mse 0.2423")
    LiveProgressBar(console, standing).stop()
    assert isinstance(console.file, io.StringIO)
    assert "loss 0.2423" in console.file.getvalue()


@pytest.mark.parametrize("script", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_that_is_imported_starts_nothing(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the processes do that read pictures ahead: each would start a run of its own."""
    monkeypatch.setattr(sys, "argv", [script.name, "--no-such-option"])
    runpy.run_path(str(script), run_name="__mp_main__")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("genexp model=va", ["model=vae"]),
        ("genexp dataset=mnist_", ["dataset=mnist_5k"]),
        ("genexp experiment=vae_r", ["experiment=vae_reference"]),
        ("genexp model=vae trainer.epo", ["trainer.epochs="]),
        ("genexp optimizer=rmsprop optimizer.al", ["optimizer.alpha="]),
    ],
)
def test_tab_completes(typed: str, completed: list[str]) -> None:
    words = typed.split()
    script = f"""
    eval "$(genexp -sc install=bash)"
    COMP_LINE='{typed}' COMP_POINT={len(typed)} COMP_CWORD={len(words) - 1}
    COMP_WORDS=({typed})
    hydra_bash_completion
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    assert shell("bash", "-c", script, PATH=path).split() == completed


def test_a_folder_of_ones_own_adds_models_and_presets(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "experiment").mkdir()
    narrow = yaml.safe_load((REPOSITORY / "conf" / "model" / "vae.yaml").read_text()) | {
        "hidden": [8],
        "latent": 2,
    }
    (tmp_path / "model" / "narrow_vae.yaml").write_text(yaml.safe_dump(narrow))
    preset = "# @package _global_\ndefaults:\n  - override /model: narrow_vae\nseed: 5\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(preset)
    option = f"--config-dir={tmp_path}"
    assert "narrow_vae" in genexp(option, "--help").out
    folder = tmp_path / "run"
    ended = genexp(option, "experiment=mine", *SHORT[1:], in_folder(folder))
    assert ended.code == 0, ended.err
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"]["hidden"], config["seed"]) == ([8], 5)
    # The run's own configuration is whole: going on with it does not need the folder.
    assert genexp(f"resume={folder}", "trainer.max_steps=2").code == 0


def test_every_word_does_what_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = "model=vae optimizer=rmsprop optimizer.lr=3e-4 dataset=mnist_5k trainer.epochs=3 device=cpu seed=7"
    ended = genexp(*words.split(), "dataset.limit=200", "device.threads=1", in_folder(folder))
    assert ended.code == 0, ended.err
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["name"] == "vae"
    assert (config["optimizer"]["name"], config["optimizer"]["lr"]) == ("rmsprop", 3e-4)
    assert config["dataset"]["name"] == "mnist_5k"
    assert config["device"]["name"] == "cpu"
    assert config["seed"] == 7
    assert config["resume"] is None
    assert "${" not in (folder / "config.yaml").read_text()
    assert [line["step"] for line in metrics(folder) if line["split"] == "test"] == [2, 4, 6]
    state = status(folder)
    assert (state["state"], state["epoch"], state["model"], state["dataset"]) == ("finished", 3, "vae", "mnist_5k")
    assert state["environment"]["device"].startswith("cpu")


def test_the_output_names_what_there_is_to_look_at(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = genexp(*tiny("vae"), "trainer.max_steps=1", in_folder(folder))
    assert ended.err == ""
    assert f"tensorboard --logdir {folder}" in ended.out
    for name in ("samples.gif", "figures", "metrics.jsonl", "train.log"):
        assert str(folder / name) in ended.out
        assert (folder / name).exists()


def test_a_sweep_is_one_folder_with_a_run_each(tmp_path: Path) -> None:
    ended = genexp("-m", *SHORT, "seed=range(2)", f"hydra.sweep.dir={tmp_path}")
    assert ended.code == 0, ended.err
    for number in range(2):
        assert yaml.safe_load((tmp_path / str(number) / "config.yaml").read_text())["seed"] == number
        assert status(tmp_path / str(number))["state"] == "finished"


def test_a_sweep_over_groups_is_one_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The option may stand anywhere among the words.
    ended = genexp("model=vae,gan", "dataset=mnist_5k,digits", "-m", *SHORT[1:])
    assert ended.code == 0, ended.err
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert {"0", "1", "2", "3", "multirun.yaml", "sweep.json", "report.html", ".lock"} == {
        path.name for path in sweep.iterdir()
    }
    jobs = [status(sweep / str(number)) for number in range(4)]
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


@pytest.mark.parametrize(("wish", "is_traced"), [("0", False), ("1", True)])
def test_a_stack_trace_is_for_those_who_ask(wish: str, is_traced: bool) -> None:
    done = subprocess.run(
        [COMMAND, "model=vea"], env={**os.environ, "HYDRA_FULL_ERROR": wish}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == is_traced
    assert ("genexp: model=vea does not exist" in done.stderr) != is_traced


def test_several_values_need_the_option() -> None:
    ended = genexp("seed=range(2)")
    assert ended.code == 1
    assert "requires --multirun" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resume="], "resume= names no folder"),
        (["-m", "resume={run}", "trainer.epochs=9"], "goes on with one run; leave out -m"),
        (["resume={run}", "model=gan"], "cannot change model=gan; leave it out"),
        (["resume={run}", "experiment=vae"], "cannot change experiment=vae; leave it out"),
        (["resume={run}", "trainer.epoch=9"], "trainer.epoch is no key of the config.yaml of the run"),
        (["resume={run}", "trainer.epochs=1"], "has finished; set a larger trainer.epochs"),
        (["resume={run}", "trainer.max_steps=1"], "has finished; set a larger trainer.epochs"),
        ([*SHORT, "hydra.run.dir='{run}'"], "holds a run already; go on with resume="),
        (["~optimizer"], "optimizer is missing from the configuration; choose optimizer=NAME"),
        (["experiment=null"], "experiment=null chooses nothing; leave it out"),
        (["--config-name=other"], "Cannot find primary config 'other'"),
        (["--config-dir=absent"], "not found"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words: list[str], said: str, finished: Path) -> None:
    kept = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.suffix != ".log"}
    ended = genexp(*(word.format(run=finished) for word in words))
    assert ended.code == 1
    (line,) = ended.err.strip().splitlines()
    assert said in line
    assert line.startswith("genexp: ")
    assert all(path.read_bytes() == content for path, content in kept.items() if ".hydra" not in path.parts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that has finished its two epochs, in a folder whose name asks for quoting."""
    folder = tmp_path_factory.mktemp("a, (b) = c") / "run"
    assert genexp(*tiny("stacked_autoencoder"), "trainer.epochs=2", in_folder(folder)).code == 0
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "config.yaml, line 1 is no YAML"),
        ("", "is no key of the config.yaml of the run"),
    ],
)
def test_a_run_with_a_damaged_configuration_is_refused_in_a_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    ended = genexp(f"resume={tmp_path}")
    assert ended.code == 1
    (line,) = ended.err.strip().splitlines()
    assert said in line


def test_a_folder_with_any_name_can_be_resumed(finished: Path) -> None:
    ended = genexp(f"resume={finished}", "trainer.epochs=3", 'notes="longer: by one"', "tags=[a,b]")
    assert ended.code == 0, ended.err
    assert status(finished)["epoch"] == 3
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["trainer"]["epochs"], config["notes"], config["tags"]) == (3, "longer: by one", ["a", "b"])


def silently(log: Path) -> None:
    """Send what this process has to complain to a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_before_the_first_step_leaves_no_trace(number: signal.Signals, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "stderr"
    with background(*tiny("vae"), in_folder(folder), prepare=silently, options=(log,)) as process:
        while not (folder / "train.log").exists():
            time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == 128 + number
    assert "Traceback" not in log.read_text()
