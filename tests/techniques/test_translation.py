"""Image translation: pix2pix and CycleGAN."""

from __future__ import annotations

from pathlib import Path

import pytest

from genexp.capabilities import CanTranslate
from genexp.technique import find_technique
from tests.support.command import format_run_dir_override, read_metrics_log, run_genexp
from tests.support.images import write_images

ON_CPU = ("device=cpu", "device.threads=1")


def test_pix2pix_learns_the_pairs(tmp_path: Path) -> None:
    overrides = ("model=pix2pix", "dataset.source=digits", "model.generator_width=16", "optimizer.lr=2e-3")
    result = run_genexp(
        *overrides, *ON_CPU, "trainer.epochs=3", "model.dropout=0", format_run_dir_override(tmp_path)
    )
    assert result.exit_code == 0, result.stderr
    tested = [line for line in read_metrics_log(tmp_path) if line["split"] == "test"]
    assert tested[-1]["l1"] < 0.7 * tested[0]["l1"]
    assert tested[-1]["ssim"] > tested[0]["ssim"]
    assert (tmp_path / "figures" / "translations.png").is_file()
    assert (tmp_path / "translations.gif").is_file()


def test_cyclegan_reduces_the_cycle_loss(tmp_path: Path) -> None:
    overrides = ("model=cyclegan", "dataset.source=digits", "model.generator_width=8", "dataset.limit=300")
    result = run_genexp(
        *overrides, *ON_CPU, "trainer.epochs=3", "optimizer.lr=2e-3", format_run_dir_override(tmp_path)
    )
    assert result.exit_code == 0, result.stderr
    tested = [line for line in read_metrics_log(tmp_path) if line["split"] == "test"]
    assert tested[-1]["cycle_l1"] < tested[0]["cycle_l1"]
    assert {"domain_distance", "identity_l1", "truth_l1", "truth_ssim"} < set(tested[-1])
    for name in ("a_to_b.gif", "b_to_a.gif", "figures/before_after.png"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan"])
def test_translation_accepts_color_images_from_folders(name: str, tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "1"), write_images(tmp_path / "2")
    folders = {
        "pix2pix": ("dataset=pairs", f"dataset.input={first}", f"dataset.target={second}"),
        "cyclegan": ("dataset=unpaired", f"dataset.a={first}", f"dataset.b={second}"),
    }
    small = ("dataset.size=24", "trainer.batch_size=2", "trainer.max_steps=2", "model.generator_width=4")
    result = run_genexp(
        f"model={name}", *folders[name], *small, *ON_CPU, format_run_dir_override(tmp_path / "run")
    )
    assert result.exit_code == 0, result.stderr
    assert issubclass(find_technique(name), CanTranslate)
