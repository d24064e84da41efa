"""What a user can get wrong ends in one clear line and a non-zero exit code."""

from __future__ import annotations

import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from genexp.run_dir.checkpoint import list_checkpoints
from tests.support.command import TINY, background, genexp, in_folder, status
from tests.support.compose import tiny


def complaint(*arguments: str) -> str:
    """Run what must fail, and return its one line."""
    ended = genexp(*arguments)
    assert ended.code == 1, ended
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("genexp: ")
    assert "Traceback" not in ended.out + ended.err
    return line


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("model=vea", "model=vea does not exist; did you mean vae?"),
        ("dataset=mnist5k", "dataset=mnist5k does not exist; did you mean mnist_5k?"),
        ("optimizer=adm", "did you mean adam?"),
        ("modle=vae", "modle is no key of this configuration; did you mean model?"),
        ("model.latnet=3", "did you mean model.latent?"),
        ("optimizer.learning_rate=3", "optimizer.learning_rate is no key"),
        ("+model.depth=3", "model.depth is no key of model"),
        ("+optimizer.generator.lr=0.1", "optimizer.generator names no phase of this model; choose one of: vae"),
        ("optimizer.lr=fast", "optimizer.lr=fast: "),
        ("trainer.epochs=2.5", "trainer.epochs=2.5: "),
        ("seed=one", "seed=one: "),
        ("seed=-1", "seed=-1: use 0 or more"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0: use a positive learning rate"),
        ("optimizer.lr=0", "optimizer.lr=0.0: use a positive learning rate"),
        ("trainer.batch_size=0", "trainer.batch_size=0: use a positive value"),
        ("trainer.batch_size=-5", "trainer.batch_size=-5: use a positive value"),
        ("trainer.epochs=0", "trainer.epochs=0: use at least 1"),
        ("trainer.precision=fp8", "trainer.precision=fp8: choose one of auto, amx, fp32, bf32, bf16"),
        ("trainer.objective=beauty", "trainer.objective=beauty is no test metric of model=vae"),
        ("optimizer.schedule=stairs", "optimizer.schedule=stairs: choose one of constant, linear, cosine"),
        ("model.activation=step", "model.activation=step: choose one of relu"),
        ("model.hidden=[]", "model.hidden=[]: use positive widths"),
        ("trainer.batch_size=600", "trainer.batch_size=600 exceeds the 40 training samples of dataset=mnist_5k"),
        ("dataset=circles", "dataset=circles has no image stream"),
        ("+epochs=3", "epochs is no key of this configuration; did you mean trainer.epochs?"),
        ("optimizer.lr==3", "'optimizer.lr==3' cannot be read; write key=value"),
        ("vae", "'vae' cannot be read; write key=value"),
        ("", "'' cannot be read; write key=value"),
        ("seed=1,2", "seed=1,2 is several values; add -m to run each"),
    ],
)
def test_a_wrong_word_is_named_with_its_remedy(argument: str, said: str, tmp_path: Path) -> None:
    limit = [word for word in TINY if not (argument.startswith("dataset=") and "limit" in word)]
    batch = [] if "batch_size" in argument else ["trainer.batch_size=8"]
    line = complaint(argument, *limit, *batch, "trainer.max_steps=1", in_folder(tmp_path / "run"))
    assert said in line


def test_images_too_small_for_a_convolutional_model(tmp_path: Path) -> None:
    line = complaint("model=conv_autoencoder", "dataset=digits", in_folder(tmp_path / "run"))
    assert "images of 8×8 pixels are too small" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    line = complaint("device=cuda", in_folder(tmp_path / "run"))
    assert "device=cuda: torch" in line
    assert "use device=cpu" in line


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    line = complaint(*tiny("vae"), in_folder(file / "run"))
    assert str(file) in line
    assert file.read_text() == "in the way"


def test_a_loss_that_is_no_longer_finite(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (*tiny("vae"), "optimizer=sgd", "trainer.epochs=50", "trainer.checkpoint_every=1")
    line = complaint(*words, "optimizer.lr=0.5", in_folder(folder))
    assert "of phase vae became" in line or "became NaN or infinite by step" in line
    assert "at step" in line or "by step" in line
    state = status(folder)
    assert (state["state"], state["error"]) == ("failed", line.removeprefix("genexp: "))
    for file in list_checkpoints(folder):
        weights = torch.load(file, weights_only=True)["technique"]
        assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a short run that has finished; its checkpoints are its largest files. Copy it before breaking it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert genexp(*tiny("vae"), "model.hidden=[400,400]", "trainer.epochs=2", in_folder(folder)).code == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    assert f"resume={tmp_path} is no run's folder" in complaint(f"resume={tmp_path}")
    assert "is no run's folder" in complaint(f"resume={tmp_path / 'absent'}")


def test_resuming_a_finished_run(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.name != "train.log" and path.is_file()}
    assert "has finished; set a larger trainer.epochs" in complaint(f"resume={run}")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_resuming_with_another_setting(run: Path) -> None:
    line = complaint(f"resume={run}", "trainer.epochs=3", "optimizer.lr=0.5", "model.latent=7")
    assert "cannot change model.latent=7 (was 20), optimizer.lr=0.5 (was 0.001)" in line


def test_resuming_with_another_model(run: Path) -> None:
    assert "model" in complaint(f"resume={run}", "model=gan")


def test_resuming_without_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint" in complaint(f"resume={run}", "trainer.epochs=3")


def test_resuming_from_damaged_checkpoints_only(run: Path) -> None:
    for file in list_checkpoints(run):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = complaint(f"resume={run}", "trainer.epochs=3")
    assert "has only checkpoints that cannot be used" in line


def test_a_flipped_bit_is_noticed(run: Path) -> None:
    for file in list_checkpoints(run):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert "does not match" in complaint(f"resume={run}", "trainer.epochs=3")


class Bomb:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, ("boom",))


def test_a_checkpoint_that_carries_code(run: Path) -> None:
    for file in list_checkpoints(run):
        torch.save({"format": 1, "bomb": Bomb()}, file)
    assert "possibly code: not loaded" in complaint(f"resume={run}", "trainer.epochs=3")
    for file in list_checkpoints(run):
        file.write_bytes(pickle.dumps(Bomb()))
    complaint(f"resume={run}", "trainer.epochs=3")
    assert not Path("boom").exists()


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes, as a full disk would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_is_full_when_a_checkpoint_is_written(run: Path) -> None:
    whole = list_checkpoints(run)[0]
    room = whole.stat().st_size // 2
    with background(f"resume={run}", "trainer.epochs=3", prepare=limit_files, options=(room,)) as process:
        process.join()
        assert process.exitcode == 1
    state = status(run)
    assert state["state"] == "failed"
    assert "could not be written" in state["error"]
    assert list_checkpoints(run)[0] == whole
    assert genexp(f"resume={run}", "trainer.epochs=3").code == 0


def test_two_runs_of_the_same_second_have_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert genexp(*tiny("vae"), "trainer.max_steps=1").code == 0
    assert len(list((tmp_path / "outputs" / "runs" / "vae").iterdir())) == 2


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with background(*tiny("vae"), "trainer.epochs=1000000", "trainer.preview_every=0", in_folder(folder)):
        while not list_checkpoints(folder):
            pass
        assert "is in use by another process" in complaint(f"resume={folder}")
