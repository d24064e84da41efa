"""User errors: one line on standard error and a non-zero exit code."""

from __future__ import annotations

import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from genexp.run_dir.checkpoint import list_checkpoints
from tests.support.command import (
    TINY_RUN_OVERRIDES,
    format_run_dir_override,
    get_error_line,
    load_status,
    run_genexp,
    start_genexp,
    wait_for,
)
from tests.support.compose import make_tiny_overrides


def get_genexp_error(*overrides: str) -> str:
    """Run a command line that must fail and return its error line."""
    return get_error_line(run_genexp(*overrides), "genexp")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=vea", "model=vea: unknown name. Did you mean vae?"),
        ("dataset=mnist5k", "dataset=mnist5k: unknown name. Did you mean mnist_5k?"),
        ("optimizer=adm", "Did you mean adam?"),
        ("modle=vae", "modle: unknown key. Did you mean model?"),
        ("model.latnet=3", "Did you mean model.latent?"),
        ("optimizer.learning_rate=3", "optimizer.learning_rate: unknown key"),
        ("+model.depth=3", "model.depth: unknown key"),
        ("+optimizer.generator.lr=0.1", "optimizer.generator: unknown phase. Use one of: vae."),
        ("optimizer.lr=fast", "optimizer.lr=fast: "),
        ("trainer.epochs=2.5", "trainer.epochs=2.5: "),
        ("seed=one", "seed=one: "),
        ("seed=-1", "seed=-1: must be in [0, 2**63)."),
        ("optimizer.lr=-1", "optimizer.lr=-1.0: must be positive and finite."),
        ("optimizer.lr=0", "optimizer.lr=0.0: must be positive and finite."),
        ("trainer.batch_size=0", "trainer.batch_size=0: must be positive, or null."),
        ("trainer.batch_size=-5", "trainer.batch_size=-5: must be positive, or null."),
        ("trainer.epochs=0", "trainer.epochs=0: must be at least 1."),
        ("trainer.precision=fp8", "trainer.precision=fp8: must be one of auto, amx, fp32, bf32, bf16"),
        (
            "trainer.objective=negative_ebo",
            "trainer.objective=negative_ebo: not a test metric of model=vae on dataset=mnist_5k. "
            "Did you mean negative_elbo?",
        ),
        ("optimizer.schedule=stairs", "optimizer.schedule=stairs: must be one of constant, linear, cosine"),
        ("model.activation=step", "model.activation=step: must be one of relu"),
        ("model.hidden=[]", "model.hidden=[]: must be positive integers."),
        ("trainer.batch_size=600", "trainer.batch_size=600: exceeds the 40 training samples of dataset=mnist_5k"),
        (
            "dataset=circles",
            "model.likelihood=bernoulli: not for the points of dataset=circles. Use model.network=dense",
        ),
        ("+epochs=3", "epochs: unknown key. Did you mean trainer.epochs?"),
        ("optimizer.lr==3", "'optimizer.lr==3': not a valid override. Use key=value"),
        ("vae", "'vae': not a valid override. Use key=value"),
        ("", "'': not a valid override. Use key=value"),
        ("seed=1,2", "seed=1,2: several values for one run. Add -m to run each"),
    ],
)
def test_invalid_override_error_has_key_value_and_remedy(override: str, message: str, tmp_path: Path) -> None:
    limit = [word for word in TINY_RUN_OVERRIDES if not (override.startswith("dataset=") and "limit" in word)]
    batch = [] if "batch_size" in override else ["trainer.batch_size=8"]
    line = get_genexp_error(
        override, *limit, *batch, "trainer.max_steps=1", format_run_dir_override(tmp_path / "run")
    )
    assert message in line


def test_images_too_small_for_a_convolutional_model_are_rejected(tmp_path: Path) -> None:
    line = get_genexp_error("model=conv_autoencoder", "dataset=digits", format_run_dir_override(tmp_path / "run"))
    assert "images of 8×8 pixels: too small" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_reported(tmp_path: Path) -> None:
    line = get_genexp_error("device=cuda", format_run_dir_override(tmp_path / "run"))
    assert "device=cuda: not available to torch" in line
    assert "Use device=cpu" in line


def test_unwritable_output_directory_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    line = get_genexp_error(*make_tiny_overrides("vae"), format_run_dir_override(file / "run"))
    assert str(file) in line
    assert file.read_text() == "in the way"


def test_nonfinite_loss_fails_the_run_and_keeps_finite_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = (*make_tiny_overrides("vae"), "optimizer=sgd", "trainer.epochs=50", "trainer.checkpoint_every=1")
    line = get_genexp_error(*overrides, "optimizer.lr=0.5", format_run_dir_override(folder))
    assert "of phase vae became" in line or "became NaN or infinite by step" in line
    assert "at step" in line or "by step" in line
    state = load_status(folder)
    assert (state["state"], state["error"]) == ("failed", line.removeprefix("genexp: "))
    for file in list_checkpoints(folder):
        weights = torch.load(file, weights_only=True)["technique"]
        assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.fixture(scope="module")
def finished_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a short finished run whose largest files are checkpoints. Copy it before damaging it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert (
        run_genexp(
            *make_tiny_overrides("vae"),
            "model.hidden=[400,400]",
            "trainer.epochs=2",
            format_run_dir_override(folder),
        ).exit_code
        == 0
    )
    return folder


@pytest.fixture
def run_dir(finished_run_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run."""
    return Path(shutil.copytree(finished_run_dir, tmp_path / "run"))


def test_resuming_a_directory_without_a_run_fails(tmp_path: Path) -> None:
    assert f"resume={tmp_path}: not a run directory" in get_genexp_error(f"resume={tmp_path}")
    assert "not a run directory" in get_genexp_error(f"resume={tmp_path / 'absent'}")


def test_resuming_a_finished_run_fails_and_changes_no_file(run_dir: Path) -> None:
    before = {
        path: path.read_bytes() for path in run_dir.rglob("*.*") if path.name != "train.log" and path.is_file()
    }
    assert "already finished. Use a larger trainer.epochs" in get_genexp_error(f"resume={run_dir}")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_resuming_with_changed_settings_fails(run_dir: Path) -> None:
    line = get_genexp_error(f"resume={run_dir}", "trainer.epochs=3", "optimizer.lr=0.5", "model.latent=7")
    assert "cannot change model.latent=7 (was 20), optimizer.lr=0.5 (was 0.001)" in line


def test_resuming_with_another_model_fails(run_dir: Path) -> None:
    assert "model" in get_genexp_error(f"resume={run_dir}", "model=gan")


def test_resuming_without_checkpoints_fails(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    assert ": no checkpoint" in get_genexp_error(f"resume={run_dir}", "trainer.epochs=3")


def test_resuming_from_only_damaged_checkpoints_fails(run_dir: Path) -> None:
    for file in list_checkpoints(run_dir):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = get_genexp_error(f"resume={run_dir}", "trainer.epochs=3")
    assert "no usable checkpoint" in line


def test_checkpoint_with_a_flipped_bit_is_rejected(run_dir: Path) -> None:
    for file in list_checkpoints(run_dir):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert "damaged (its checksum is " in get_genexp_error(f"resume={run_dir}", "trainer.epochs=3")


class PickledCode:
    """Object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, ("boom",))


def test_checkpoint_with_pickled_code_is_not_loaded(run_dir: Path) -> None:
    for file in list_checkpoints(run_dir):
        torch.save({"format": 1, "bomb": PickledCode()}, file)
    assert "not loaded: it contains other objects" in get_genexp_error(f"resume={run_dir}", "trainer.epochs=3")
    for file in list_checkpoints(run_dir):
        file.write_bytes(pickle.dumps(PickledCode()))
    get_genexp_error(f"resume={run_dir}", "trainer.epochs=3")
    assert not Path("boom").exists()


def limit_file_size(max_bytes: int) -> None:
    """Limit the size of files that this process writes, as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))


def test_full_disk_keeps_the_previous_checkpoint(run_dir: Path) -> None:
    whole = list_checkpoints(run_dir)[0]
    max_bytes = whole.stat().st_size // 2
    with start_genexp(
        f"resume={run_dir}", "trainer.epochs=3", prepare=limit_file_size, prepare_args=(max_bytes,)
    ) as process:
        process.join()
        assert process.exitcode == 1
    state = load_status(run_dir)
    assert state["state"] == "failed"
    assert "not written" in state["error"]
    assert list_checkpoints(run_dir)[0] == whole
    assert run_genexp(f"resume={run_dir}", "trainer.epochs=3").exit_code == 0


def test_runs_started_in_the_same_second_have_different_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run_genexp(*make_tiny_overrides("vae"), "trainer.max_steps=1").exit_code == 0
    assert len(list((tmp_path / "outputs" / "runs" / "vae").iterdir())) == 2


def test_run_directory_in_use_is_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_genexp(
        *make_tiny_overrides("vae"),
        "trainer.epochs=1000000",
        "trainer.preview_every=0",
        format_run_dir_override(folder),
    ):
        wait_for(lambda: list_checkpoints(folder), seconds=120)
        assert "in use by another process" in get_genexp_error(f"resume={folder}")
