"""What a run leaves: the files, and what is in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from tests.support.command import TINY, genexp, in_folder, metrics, status
from tests.support.tensorboard import ask, tensorboard_server

CHROMIUM = Path("/usr/bin/chromium")
EPOCHS, STEPS = 4, 5  # five batches of eight from forty images
MODEL = "latent3d_autoencoder"  # whose latent can be drawn
RUN = (f"model={MODEL}", *TINY, "trainer.batch_size=8", f"trainer.epochs={EPOCHS}", "seed=3", "tags=[a,b]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    ended = genexp(*RUN, 'notes="for a look"', in_folder(path))
    assert ended.code == 0, ended.err
    return path


def events(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    read.Reload()
    return read


def frames_of(path: Path) -> list[bytes]:
    """Return the pixels of each frame of an animation."""
    with Image.open(path) as animation:
        return [frame.convert("L").tobytes() for frame in ImageSequence.Iterator(animation)]


def test_every_file_of_the_plan_is_there(folder: Path) -> None:
    for name in ("config.yaml", "train.log", "metrics.jsonl", "status.json", "reconstructions.gif"):
        assert (folder / name).stat().st_size > 0, name
    for name in ("checkpoints", "tensorboard", "figures", ".hydra"):
        assert any((folder / name).iterdir()), name
    assert not list(folder.rglob("*.tmp"))


def test_metrics_are_a_json_object_a_line(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    test = [line for line in lines if line["split"] == "test"]
    assert len(lines) == len(train) + len(test)
    assert [line["step"] for line in train] == list(range(1, EPOCHS * STEPS + 1))
    assert [line["epoch"] for line in train] == [1 + step // STEPS for step in range(EPOCHS * STEPS)]
    assert [(line["step"], line["epoch"]) for line in test] == [(STEPS * epoch, epoch) for epoch in (1, 2, 3, 4)]
    assert all(list(line)[:3] == ["step", "epoch", "split"] for line in lines)
    assert all(set(line) == {"step", "epoch", "split", "loss"} for line in train)
    assert all({"mse", "psnr", "ssim"} < set(line) for line in test)
    assert all(isinstance(value, float) for line in train for value in [line["loss"]])


def test_status_says_how_the_run_ended_and_what_it_was_made_with(folder: Path) -> None:
    state = status(folder)
    assert (state["state"], state["error"]) == ("finished", None)
    assert (state["step"], state["total_steps"], state["epoch"]) == (EPOCHS * STEPS, EPOCHS * STEPS, EPOCHS)
    *_, last_train, last_test = metrics(folder)
    assert state["train"] == pytest.approx({"loss": last_train["loss"]})
    assert state["test"] == {key: last_test[key] for key in state["test"]}
    best = min((line["mse"], line["step"]) for line in metrics(folder) if line["split"] == "test")
    assert (state["objective"], state["best"]) == ("mse", {"value": best[0], "step": best[1]})
    environment = state["environment"]
    assert environment["device"] == "cpu (1 thread)"
    assert environment["torch"] == torch.__version__
    assert {"python", "platform", "git_commit", "genexp", "hydra-core", "torchvision", "numpy"} <= set(environment)


def test_the_configuration_is_whole_and_plain(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    config = yaml.safe_load(text)
    assert "${" not in text
    assert {"model", "dataset", "optimizer", "trainer", "device", "seed", "resume", "tags", "notes"} == set(config)
    assert (config["seed"], config["tags"], config["notes"]) == (3, ["a", "b"], "for a look")
    assert (config["model"]["name"], config["trainer"]["epochs"]) == (MODEL, EPOCHS)


def test_the_log_has_a_line_an_epoch(folder: Path) -> None:
    lines = (folder / "train.log").read_text().splitlines()
    for epoch in range(1, EPOCHS + 1):
        (line,) = [line for line in lines if f"epoch {epoch}/{EPOCHS}" in line]
        assert "loss " in line
        assert "mse " in line
        assert "images/s" in line


def test_figures_show_the_losses_and_what_the_technique_can_show(folder: Path) -> None:
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {"loss.png", "reconstructions.png", "latents.png", "latents.html"} <= names
    for path in (folder / "figures").glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) >= 100, path
            assert len({pixel for _, pixel in picture.convert("RGB").getcolors(2**24) or []}) > 2, path


def test_a_gif_has_a_frame_a_preview(folder: Path) -> None:
    frames = frames_of(folder / "reconstructions.gif")
    assert len(frames) == 1 + EPOCHS  # and one from before the first step
    assert len(set(frames)) == len(frames), "it learns"


def test_checkpoints_are_bounded_and_can_be_read_without_running_code(folder: Path) -> None:
    newest, *older = list_checkpoints(folder)
    assert newest.name == f"step-{EPOCHS * STEPS:08d}.pt"
    assert len(older) == 1
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {newest.name, older[0].name, "best.pt"}
    for path in (newest, *older, folder / "checkpoints" / "best.pt"):
        assert torch.load(path, weights_only=True)["checksum"]
        load_checkpoint(path)
    best = load_checkpoint(folder / "checkpoints" / "best.pt")
    assert (best["step"], best["value"]) == (status(folder)["best"]["step"], status(folder)["best"]["value"])
    assert best["technique"].keys() == load_checkpoint(newest)["technique"].keys()


def test_tensorboard_has_every_step_and_every_score(folder: Path) -> None:
    board = events(folder)
    rows = metrics(folder)
    for split in ("train", "test"):
        for name in {key for row in rows if row["split"] == split for key in row} - {"step", "epoch", "split"}:
            logged = [(row["step"], row[name]) for row in rows if row["split"] == split]
            read = [(event.step, event.value) for event in board.Scalars(f"{split}/{name}")]
            assert [step for step, _ in read] == [step for step, _ in logged]
            assert [value for _, value in read] == pytest.approx([value for _, value in logged], rel=1e-6)


def test_tensorboard_has_pictures_settings_and_codes(folder: Path) -> None:
    board = events(folder)
    previews = board.Images("preview/reconstructions")
    assert [image.step for image in previews] == [STEPS * epoch for epoch in range(EPOCHS + 1)]
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in previews)
    (animation,) = board.Images("animation/reconstructions")
    assert animation.encoded_image_string == (folder / "reconstructions.gif").read_bytes()
    summary = board.SummaryMetadata("config/text_summary")
    assert summary.plugin_data.plugin_name == "text"
    text = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    inside = yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```"))
    assert inside == yaml.safe_load((folder / "config.yaml").read_text())
    assert "_hparams_/session_start_info" in board.summary_metadata
    assert "_hparams_/session_end_info" in board.summary_metadata
    projector = folder / "tensorboard" / "projector"
    codes = (projector / "codes.tsv").read_text().splitlines()
    assert len(codes) == len((projector / "classes.tsv").read_text().splitlines()) > 1
    assert all(len(line.split("\t")) == 3 for line in codes)
    with Image.open(projector / "thumbnails.png") as sprite:
        assert sprite.width == sprite.height
    settings = (folder / "tensorboard" / "projector_config.pbtxt").read_text()
    for name in ("codes.tsv", "classes.tsv", "thumbnails.png"):
        assert f'"projector/{name}"' in settings


def test_a_longer_run_has_no_step_twice_and_none_missing(folder: Path, tmp_path: Path) -> None:
    longer = Path(shutil.copytree(folder, tmp_path / "run"))
    ended = genexp(f"resume={longer}", f"trainer.epochs={EPOCHS + 2}")
    assert ended.code == 0, ended.err
    last = (EPOCHS + 2) * STEPS
    for split in ("train", "test"):
        steps = [row["step"] for row in metrics(longer) if row["split"] == split]
        assert steps == (list(range(1, last + 1)) if split == "train" else list(range(STEPS, last + 1, STEPS)))
        name = "loss" if split == "train" else "mse"
        assert [event.step for event in events(longer).Scalars(f"{split}/{name}")] == steps
    assert metrics(longer)[: len(metrics(folder))] == metrics(folder)
    frames = frames_of(longer / "reconstructions.gif")
    assert len(frames) == 1 + EPOCHS + 2
    assert frames[: 1 + EPOCHS] == frames_of(folder / "reconstructions.gif")
    previews = [image.step for image in events(longer).Images("preview/reconstructions")]
    assert previews == [STEPS * epoch for epoch in range(EPOCHS + 3)]


def screenshot(address: str, path: Path, profile: Path) -> None:
    """Take a picture of a page, once its scripts have drawn it."""
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
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium here")
def test_a_browser_shows_the_run_in_tensorboard(folder: Path, tmp_path: Path) -> None:
    with tensorboard_server(folder.parent) as address:
        name = f"{folder.name}/tensorboard"
        assert "train/loss" in ask(f"{address}/data/plugin/scalars/tags")[name]
        pictures = Path(os.environ.get("GENEXP_SCREENSHOTS", tmp_path))
        for page in ("timeseries", "images", "projector"):
            screenshot(f"{address}/#{page}", pictures / f"{page}.png", tmp_path / "profile")
            with Image.open(pictures / f"{page}.png") as picture:
                assert picture.size == (1400, 1000)
                # More than a page that stayed empty: TensorBoard's orange bar, text, and curves or images.
                assert len(picture.convert("RGB").getcolors(2**24) or []) > 100
