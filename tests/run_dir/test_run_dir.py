"""Files of a run directory and their content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from genexp.recorders.tensorboard import get_scalar_tag
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from tests.support.command import (
    FIGURES_ON,
    TINY_RUN_OVERRIDES,
    format_run_dir_override,
    load_status,
    read_metrics_log,
    run_genexp,
)
from tests.support.images import read_frames
from tests.support.tensorboard import query_tensorboard, read_events, start_tensorboard

CHROMIUM = Path("/usr/bin/chromium")
EPOCHS, STEPS_PER_EPOCH = 4, 5  # five batches of eight from forty images
MODEL = "latent3d_autoencoder"  # its latent space can be plotted
RUN_OVERRIDES = (
    f"model={MODEL}",
    *TINY_RUN_OVERRIDES,
    FIGURES_ON,
    "trainer.batch_size=8",
    f"trainer.epochs={EPOCHS}",
    "seed=3",
    "tags=[a,b]",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a short run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    result = run_genexp(*RUN_OVERRIDES, 'notes="for a look"', format_run_dir_override(path))
    assert result.exit_code == 0, result.stderr
    return path


def read_gray_frames(path: Path) -> list[bytes]:
    """Return the gray pixels of each frame of a GIF, as bytes that can be compared."""
    return [frame.tobytes() for frame in read_frames(path, "L")]


def test_run_directory_contains_every_documented_file(run_dir: Path) -> None:
    for name in ("config.yaml", "train.log", "metrics.jsonl", "status.json", "reconstructions.gif"):
        assert (run_dir / name).stat().st_size > 0, name
    for name in ("checkpoints", "projector", "figures", ".hydra"):
        assert any((run_dir / name).iterdir()), name
    assert not list(run_dir.rglob("*.tmp"))


def test_metrics_log_has_one_json_object_per_line(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    test = [line for line in lines if line["split"] == "test"]
    assert len(lines) == len(train) + len(test)
    assert [line["step"] for line in train] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert [line["epoch"] for line in train] == [
        1 + step // STEPS_PER_EPOCH for step in range(EPOCHS * STEPS_PER_EPOCH)
    ]
    assert [(line["step"], line["epoch"]) for line in test] == [
        (STEPS_PER_EPOCH * epoch, epoch) for epoch in (1, 2, 3, 4)
    ]
    assert all(list(line)[:3] == ["step", "epoch", "split"] for line in lines)
    assert all(set(line) == {"step", "epoch", "split", "loss"} for line in train)
    assert all({"mse", "psnr", "ssim"} < set(line) for line in test)
    assert all(isinstance(value, float) for line in train for value in [line["loss"]])


def test_status_has_outcome_and_environment(run_dir: Path) -> None:
    state = load_status(run_dir)
    assert (state["state"], state["error"]) == ("finished", None)
    assert (state["step"], state["total_steps"], state["epoch"]) == (
        EPOCHS * STEPS_PER_EPOCH,
        EPOCHS * STEPS_PER_EPOCH,
        EPOCHS,
    )
    rows = read_metrics_log(run_dir)
    losses = [row["loss"] for row in rows if row["split"] == "train" and row["epoch"] == EPOCHS]
    assert state["train"] == pytest.approx({"loss": sum(losses) / STEPS_PER_EPOCH})
    last_test = rows[-1]
    assert state["test"] == {key: last_test[key] for key in state["test"]}
    best = min((line["mse"], line["step"]) for line in read_metrics_log(run_dir) if line["split"] == "test")
    assert (state["objective"], state["best"]) == ("mse", {"value": best[0], "step": best[1]})
    environment = state["environment"]
    assert environment["device"] == "cpu (1 thread)"
    assert environment["torch"] == torch.__version__
    assert {"python", "platform", "git_commit", "genexp", "hydra-core", "torchvision", "numpy"} <= set(environment)


def test_saved_configuration_is_complete_and_resolved(run_dir: Path) -> None:
    text = (run_dir / "config.yaml").read_text()
    config = yaml.safe_load(text)
    assert "${" not in text
    assert {
        "model",
        "dataset",
        "optimizer",
        "trainer",
        "device",
        "seed",
        "resume",
        "tags",
        "notes",
        "recorders",
    } == set(config)
    assert (config["seed"], config["tags"], config["notes"]) == (3, ["a", "b"], "for a look")
    assert (config["model"]["name"], config["trainer"]["epochs"]) == (MODEL, EPOCHS)


def test_train_log_has_one_line_per_epoch(run_dir: Path) -> None:
    lines = (run_dir / "train.log").read_text().splitlines()
    for epoch in range(1, EPOCHS + 1):
        (line,) = [line for line in lines if f"epoch {epoch}/{EPOCHS}" in line]
        assert "loss " in line
        assert "mse " in line
        assert "samples/s" in line


def test_figures_contain_losses_reconstructions_and_latents(run_dir: Path) -> None:
    names = {path.name for path in (run_dir / "figures").iterdir()}
    assert {"loss.png", "reconstructions.png", "latents.png", "latents.html"} <= names
    for path in (run_dir / "figures").glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 100, path
            assert len({pixel for _, pixel in image.convert("RGB").getcolors(2**24) or []}) > 2, path


def test_gif_has_one_frame_per_preview(run_dir: Path) -> None:
    frames = read_gray_frames(run_dir / "reconstructions.gif")
    assert len(frames) == 1 + EPOCHS  # one of them before the first step
    assert len(set(frames)) == len(frames), "two frames are equal"


def test_checkpoints_are_limited_and_load_with_weights_only(run_dir: Path) -> None:
    (newest,) = list_checkpoints(run_dir)  # one fewer than trainer.keep_checkpoints: the run has finished
    assert newest.name == f"step-{EPOCHS * STEPS_PER_EPOCH:08d}.pt"
    # The newest weights are the best ones, which are not stored twice.
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [newest.name]
    assert torch.load(newest, weights_only=True)["checksum"]
    best = load_checkpoint(newest)
    assert (best["step"], best["progress"]["best_value"]) == (
        load_status(run_dir)["best"]["step"],
        load_status(run_dir)["best"]["value"],
    )
    assert best["technique"].keys() == load_checkpoint(newest)["technique"].keys()


def test_tensorboard_has_every_step_and_every_score(run_dir: Path) -> None:
    accumulator = read_events(run_dir)
    rows = read_metrics_log(run_dir)
    for split in ("train", "test"):
        for name in {key for row in rows if row["split"] == split for key in row} - {"step", "epoch", "split"}:
            logged = [(row["step"], row[name]) for row in rows if row["split"] == split]
            read = [(event.step, event.value) for event in accumulator.Scalars(get_scalar_tag(name, split))]
            assert [step for step, _ in read] == [step for step, _ in logged]
            assert [value for _, value in read] == pytest.approx([value for _, value in logged], rel=1e-6)


def test_tensorboard_has_images_config_and_codes(run_dir: Path) -> None:
    accumulator = read_events(run_dir)
    previews = accumulator.Images("previews/reconstructions")
    assert [image.step for image in previews] == [STEPS_PER_EPOCH * epoch for epoch in range(EPOCHS + 1)]
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in previews)
    summary = accumulator.SummaryMetadata("config/text_summary")
    assert summary.plugin_data.plugin_name == "text"
    text = accumulator.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    inside = yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```"))
    assert inside == yaml.safe_load((run_dir / "config.yaml").read_text())
    assert "_hparams_/session_start_info" in accumulator.summary_metadata
    assert "_hparams_/session_end_info" in accumulator.summary_metadata
    projector = run_dir / "projector"
    codes = (projector / "codes.tsv").read_text().splitlines()
    assert len(codes) == len((projector / "classes.tsv").read_text().splitlines()) > 1
    assert all(len(line.split("\t")) == 3 for line in codes)
    with Image.open(projector / "thumbnails.png") as sprite:
        assert sprite.width == sprite.height
        assert 10 < len(sprite.getcolors(256) or []) < 40
    settings = (run_dir / "projector_config.pbtxt").read_text()
    for name in ("codes.tsv", "classes.tsv", "thumbnails.png"):
        assert f'"projector/{name}"' in settings


def test_extended_run_has_every_step_exactly_once(run_dir: Path, tmp_path: Path) -> None:
    longer = Path(shutil.copytree(run_dir, tmp_path / "run"))
    result = run_genexp(f"resume={longer}", f"trainer.epochs={EPOCHS + 2}")
    assert result.exit_code == 0, result.stderr
    last = (EPOCHS + 2) * STEPS_PER_EPOCH
    for split in ("train", "test"):
        steps = [row["step"] for row in read_metrics_log(longer) if row["split"] == split]
        assert steps == (
            list(range(1, last + 1))
            if split == "train"
            else list(range(STEPS_PER_EPOCH, last + 1, STEPS_PER_EPOCH))
        )
        name = "loss" if split == "train" else "mse"
        assert [event.step for event in read_events(longer).Scalars(get_scalar_tag(name, split))] == steps
    assert read_metrics_log(longer)[: len(read_metrics_log(run_dir))] == read_metrics_log(run_dir)
    frames = read_gray_frames(longer / "reconstructions.gif")
    assert len(frames) == 1 + EPOCHS + 2
    assert frames[: 1 + EPOCHS] == read_gray_frames(run_dir / "reconstructions.gif")
    previews = [image.step for image in read_events(longer).Images("previews/reconstructions")]
    assert previews == [STEPS_PER_EPOCH * epoch for epoch in range(EPOCHS + 3)]


def save_screenshot(address: str, path: Path, profile: Path) -> None:
    """Save a screenshot of a page after its scripts have run."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
        "--hide-scrollbars",
    ]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-extensions"]
    options += [f"--screenshot={path}", "--window-size=1400,1000", "--virtual-time-budget=15000"]
    command = [str(CHROMIUM), *options, f"--user-data-dir={profile}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_browser_shows_the_run_in_tensorboard(run_dir: Path, tmp_path: Path) -> None:
    with start_tensorboard(run_dir.parent) as address:
        tags = query_tensorboard(f"{address}/data/plugin/scalars/tags")[run_dir.name]
        assert "losses/loss/train" in tags
        images = Path(os.environ.get("GENEXP_SCREENSHOTS", tmp_path))
        for page in ("timeseries", "images", "projector"):
            save_screenshot(f"{address}/#{page}", images / f"{page}.png", tmp_path / "profile")
            with Image.open(images / f"{page}.png") as image:
                assert image.size == (1400, 1000)
                # An empty page has few colors; TensorBoard's page has an orange bar, text, and curves or images.
                assert len(image.convert("RGB").getcolors(2**24) or []) > 100
