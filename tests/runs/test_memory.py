"""Settings whose memory exceeds the limit are refused before anything is allocated."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from genexp import device
from genexp.data import load_dataset
from genexp.data.sources._idx import read_idx
from genexp.device import allow_memory, check_memory, format_bytes, measure_available_memory
from genexp.errors import ConfigError
from genexp.runs import memory
from genexp.runs.memory import check_model_memory
from tests.support.command import format_run_dir_override, run_genexp
from tests.support.compose import TECHNIQUES, compose_experiment, make_tiny_overrides

HUGE_SETTINGS = {  # overrides of a run → start of the message
    ("model=vae", "model.latent=1000000000"): "model.latent=1000000000: needs at least 4.81 TB",
    ("model=stacked_autoencoder", "model.widths=[1000000,1000000,10]"): "model.widths=[1000000,1000000,10]: needs",
    ("model=kmeans", "dataset.n_samples=1000000000000"): "dataset.n_samples=1000000000000: needs at least 32 TB",
    (
        "model=kmeans",
        "dataset=blobs",
        "dataset.features=1000000000",
    ): "dataset.n_samples=500 of 1000000000 features",
    ("model=gan", "model.evaluation_samples=1000000000000"): "model.evaluation_samples=1000000000000: needs",
    ("model=style_transfer", "model.weights=random", "dataset.size=10000000"): "dataset.size=10000000: needs",
}


@pytest.mark.parametrize("overrides", HUGE_SETTINGS, ids=lambda overrides: overrides[-1])
def test_huge_sizes_are_refused(overrides: tuple[str, ...], tmp_path: Path) -> None:
    result = run_genexp(*overrides, "trainer.max_steps=1", format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 1
    assert HUGE_SETTINGS[overrides] in result.stderr
    assert result.stderr.count("\n") == 1


def test_batches_that_exceed_the_limit_are_refused(tmp_path: Path) -> None:
    limited = ("device.memory_gb=1e-4", "trainer.batch_size=40", "dataset.limit=40", "device=cpu")
    result = run_genexp(*limited, format_run_dir_override(tmp_path / "run"))
    assert "trainer.batch_size=40 of 1×28×28 (image): needs at least 125 kB of memory" in result.stderr


def test_a_key_allows_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "measure_available_memory", lambda: 1)
    overrides = (*make_tiny_overrides("vae"), "trainer.max_steps=1", "trainer.evaluate_every=0")
    refused = run_genexp(*overrides, format_run_dir_override(tmp_path / "refused"))
    assert "set device.memory_gb to allow more" in refused.stderr
    allowed = run_genexp(*overrides, "device.memory_gb=1", format_run_dir_override(tmp_path / "allowed"))
    assert allowed.exit_code == 0, allowed.stderr


def test_the_container_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_file = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CONTAINER_LIMIT_FILES", (limit_file, tmp_path / "absent"))
    limit_file.write_text("max\n")
    assert measure_available_memory() > 10**6
    limit_file.write_text("1000\n")
    assert measure_available_memory() == 1000
    with pytest.raises(ConfigError, match=r"key=1: needs at least 1\.5 kB of memory, and 1 kB are available"):
        check_memory(1500, "key=1")


@pytest.fixture(autouse=True)
def _restore_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_allowed_bytes", None)


def test_idx_files_are_bounded_by_their_header(tmp_path: Path) -> None:
    header = bytes((0, 0, 8, 1))
    huge, bomb = tmp_path / "huge", tmp_path / "bomb.gz"
    huge.write_bytes(header + b"\xff\xff\xff\xff")
    allow_memory(1)
    with pytest.raises(ConfigError, match=r"huge of 4294967295 bytes: needs at least 4\.29 GB"):
        read_idx(huge, 1)
    bomb.write_bytes(gzip.compress(header + (10).to_bytes(4, "big") + bytes(10**7)))
    with pytest.raises(Exception, match="too long, its header states 10 bytes, more follow"):
        read_idx(bomb, 1)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3.14e15, "3.14 PB")])
def test_bytes_have_decimal_units(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("name", TECHNIQUES)
def test_memory_of_every_technique_is_checked(name: str) -> None:
    experiment = compose_experiment(*make_tiny_overrides(name))
    spec = load_dataset(experiment.dataset).spec
    assert memory._count_model_bytes(experiment.technique, experiment.model, spec) is not None


IMPORT_CHECK = """
import sys
from genexp.data import load_dataset
from genexp.runs.memory import _count_model_bytes
from tests.support.compose import compose_experiment
for name in ("gan", "flow_matching", "vq_vae"):
    experiment = compose_experiment(f"model={name}")
    assert _count_model_bytes(experiment.technique, experiment.model, load_dataset(experiment.dataset).spec)
assert "torch._dynamo" not in sys.modules
"""


def test_the_check_of_the_memory_does_not_import_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_CHECK], check=True)  # the import takes almost a second


def test_a_technique_that_cannot_be_measured_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = compose_experiment(*make_tiny_overrides("vae"), "model.latent=4000")
    spec = load_dataset(experiment.dataset).spec

    def fail(*arguments: object) -> None:
        raise NotImplementedError("no kernel for the meta device\nmore lines")

    monkeypatch.setattr(experiment.technique, "__init__", fail)
    check_model_memory(experiment.technique, experiment.model, spec)
    assert "the memory of model=vae is not checked before it is built (no kernel" in caplog.text
