"""TensorBoard events, read back from the files and through the TensorBoard server."""

from __future__ import annotations

import io
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from genexp.cli.compare import link_tensorboard_logs
from genexp.images.animation import encode_animation
from genexp.recorders.tensorboard import TensorBoardRecorder, _select_changed_settings
from genexp.reports import compare
from genexp.run_dir.checkpoint import truncate_logs
from genexp.snapshot import Curve, FinalArtifacts, Snapshot
from genexp.technique import PictureLabels
from tests.support.browser import needs_browser, start_browser
from tests.support.command import TINY_RUN_OVERRIDES, format_run_dir_override, get_error_line, run_genexp
from tests.support.run_dirs import make_run_dir
from tests.support.snapshots import (
    flush_and_measure_logs,
    make_clock,
    make_curves,
    make_image,
    make_run_info,
    make_snapshot,
    open_recorder,
    record_snapshots,
    synthetic_loss,
)
from tests.support.tensorboard import query_tensorboard, read_events, start_tensorboard

# The texts of TensorBoard's page are in shadow trees.
COLLECT_TEXTS_SCRIPT = """
const words = [];
const walk = (node) => {
  if (node.shadowRoot) walk(node.shadowRoot);
  for (const child of node.childNodes) child.nodeType === 3 ? words.push(child.textContent.trim()) : walk(child);
};
walk(document.body);
"""


def read_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = read_events(run_dir)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def make_final_artifacts(size: int = 30) -> FinalArtifacts:
    codes = torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
    thumbnails = torch.stack([make_image(step) for step in range(size)])
    return FinalArtifacts(
        {"grid": make_image(1), "walk": torch.stack([make_image(1), make_image(2)])},
        codes,
        torch.arange(size) % 10,
        thumbnails,
    )


def test_every_step_and_every_score_is_read_back(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        record_snapshots(recorder, run, (0, 10, 20))
        recorder.flush()
        found = read_scalars(tmp_path)
    assert found["losses/loss/train"] == [(step, synthetic_loss(step)) for step in range(1, 21)]
    assert found["metrics/psnr/test"] == [(10, 11), (20, 12)]
    assert set(found) == {"losses/loss/train", "metrics/kl/train", "metrics/psnr/test"}


def test_recorded_events_reach_the_file_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        record_snapshots(recorder, run, (0, 10))
        monkeypatch.setattr("genexp.recorders.tensorboard.FLUSH_SECONDS", 0)
        record_snapshots(recorder, run, (20,))
        assert len(read_scalars(tmp_path)["losses/loss/train"]) == 20


def test_wall_times_increase_within_a_block(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        begin = time.time()
        time.sleep(0.05)
        recorder.record(make_snapshot(10, run))
        recorder.flush()
        times = [event.wall_time for event in read_events(tmp_path).Scalars("losses/loss/train")]
    assert times == sorted(set(times))
    assert begin - 1 < times[0] < times[-1] <= time.time()


def test_inactive_phase_has_fewer_points(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    sparse = Curve(np.array([2, 4]), np.array([0.5, 0.25], np.float32))
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        recorder.record(
            Snapshot(make_clock(4, run), {"critic_loss": make_curves(1, 4)["loss"], "generator_loss": sparse})
        )
    assert read_scalars(tmp_path)["losses/generator_loss/train"] == [(2, 0.5), (4, 0.25)]
    assert len(read_scalars(tmp_path)["losses/critic_loss/train"]) == 4


def test_images_config_gifs_and_hyperparameters_are_written(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    frames = [make_image(seed, (256, 256))[0].numpy() for seed in (1, 2)]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/walk.gif").write_bytes(encode_animation(frames, "gif", 100))
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        recorder.record(
            make_snapshot(
                40,
                run,
                preview_images={"samples": make_image(1, channels=3)},
                final_artifacts=make_final_artifacts(),
                is_complete=True,
            )
        )
    events = read_events(tmp_path)
    assert set(events.Tags()["images"]) == {"previews/samples", "results/grid", "results/walk"}
    [gif] = events.Images("results/walk")
    assert gif.encoded_image_string == (tmp_path / "figures/walk.gif").read_bytes()
    assert (gif.width, gif.step) == (256, 40)
    [text] = events.Tensors("config/text_summary")
    assert b"beta: 1.0" in text.tensor_proto.string_val[0]
    assert set(events.summary_metadata) >= {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["figures", "projector"]


def test_hyperparameters_are_those_that_the_command_line_changes(tmp_path: Path) -> None:
    config = {
        "seed": 0,
        "model": {"name": "vae", "beta": 4.0, "hidden": [8], "recipe": {"epochs": 60}},
        "optimizer": {"name": "adam", "lr": 0.01},
        "trainer": {"epochs": 2, "video": "gif"},
        "notes": "a",
    }
    (tmp_path / ".hydra").mkdir()
    overrides = [
        "model=vae",
        "+model.hidden=[8]",
        "optimizer.lr=1e-2",
        "trainer.epochs=2",
        "notes=a",
        "experiment=big",
    ]
    (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*overrides, "hydra.run.dir=x"]))
    assert _select_changed_settings(make_run_info(tmp_path, config=config)) == {
        "experiment": "big",
        "seed": 0,
        "model.name": "vae",
        "model.hidden": "[8]",
        "optimizer.lr": 0.01,
        "trainer.epochs": 2,
    }
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[")
    assert _select_changed_settings(make_run_info(tmp_path, config=config)) == {"seed": 0, "model.name": "vae"}


def test_an_integer_beyond_64_bits_is_a_text(tmp_path: Path) -> None:
    config = {"seed": 0, "model": {"name": "vae"}, "optimizer": {"eps": 10**20}}
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[optimizer.eps=1]")
    with open_recorder(TensorBoardRecorder(preview_every=1), make_run_info(tmp_path, config=config)):
        pass
    assert "_hparams_/session_start_info" in read_events(tmp_path).summary_metadata


def test_grids_of_classes_are_also_one_picture_per_class(tmp_path: Path) -> None:
    labels = {"samples": PictureLabels(rows=("2", "0")), "walk": PictureLabels(columns=("a", "b"))}
    run = make_run_info(tmp_path, picture_labels=labels)
    grid = make_image(1, (8, 6), channels=3)
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        recorder.record(make_snapshot(40, run, preview_images={"samples": grid}))
        recorder.record(make_snapshot(50, run, preview_images={"walk": grid}))  # its columns are not classes
    events = read_events(tmp_path)
    assert set(events.Tags()["images"]) == {
        *("previews/samples", "previews/walk", "samples by class/2", "samples by class/0")
    }
    [event] = events.Images("samples by class/0")
    with Image.open(io.BytesIO(event.encoded_image_string)) as image:
        assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), grid[:, 4:])


def test_histograms_are_written_only_on_request(tmp_path: Path) -> None:
    weights, gradient = torch.linspace(-1, 1, 100), torch.tensor([0.5, float("nan"), 2.0, float("inf")])
    for name, histograms in (("with", True), ("without", False)):
        run = make_run_info(tmp_path / name)
        with open_recorder(TensorBoardRecorder(preview_every=1, histograms=histograms), run) as recorder:
            state = {"encoder.weight": weights, "fixed_noise": torch.randn(9)}
            gradients = {"encoder.weight": gradient}
            recorder.record(make_snapshot(40, run, technique_state=state, gradients=gradients))
    assert read_events(tmp_path / "without").Tags()["histograms"] == []
    events = read_events(tmp_path / "with")
    assert events.Tags()["histograms"] == ["weights/encoder.weight", "weights/encoder.weight/gradient"]
    [found] = events.Histograms("weights/encoder.weight")
    assert (found.step, found.histogram_value.num, found.histogram_value.min) == (40, 100, -1)
    [found] = events.Histograms("weights/encoder.weight/gradient")
    assert (found.histogram_value.num, found.histogram_value.max) == (2, 2)  # its finite values


def test_trained_weights_and_gradients_reach_tensorboard(tmp_path: Path) -> None:
    others = [f"recorders.{name}=false" for name in ("figures", "report", "console", "previews")]
    command = (
        "model=gan",
        *TINY_RUN_OVERRIDES,
        *others,
        "trainer.batch_size=20",
        "trainer.max_steps=2",
        "recorders.tensorboard.histograms=true",
    )
    result = run_genexp(*command, format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr
    tags = read_events(tmp_path / "run").Tags()["histograms"]
    for module in ("generator", "discriminator"):
        weights = [tag for tag in tags if tag.startswith(f"weights/{module}.") and tag.endswith(".weight")]
        assert weights
        assert {f"{tag}/gradient" for tag in weights} <= set(tags)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recorders.tensorboard.histograms=3", "recorders.tensorboard.histograms=3: must be true or false"),
        ("recorders.tensorboard.histogram=true", "recorders.tensorboard.histogram: unknown key. Use histograms"),
        ("recorders.figures.size=3", "recorders.figures={'size': 3}: must be true or false"),
    ],
)
def test_wrong_options_are_one_line(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in get_error_line(run_genexp("model=gan", override), "genexp")


def test_projector_has_one_row_per_sample(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        recorder.record(make_snapshot(40, run, final_artifacts=make_final_artifacts()))
    folder = tmp_path
    assert np.loadtxt(folder / "projector/codes.tsv").shape == (30, 3)
    assert (folder / "projector/classes.tsv").read_text().split() == [str(number % 10) for number in range(30)]
    for path in re.findall(r'_path: "(.*)"', (folder / "projector_config.pbtxt").read_text()):
        assert (folder / path).is_file()


def test_truncated_and_resumed_events_equal_uninterrupted_events(tmp_path: Path) -> None:
    uninterrupted, broken = make_run_info(tmp_path / "straight"), make_run_info(tmp_path / "broken")
    with open_recorder(TensorBoardRecorder(preview_every=1), uninterrupted) as recorder:
        record_snapshots(recorder, uninterrupted, (0, 10, 20, 30, 40))
    with open_recorder(TensorBoardRecorder(preview_every=1), broken) as killed:
        record_snapshots(killed, broken, (0, 10, 20))
        log_offsets = flush_and_measure_logs(killed, broken)
        record_snapshots(killed, broken, (30,))
    truncate_logs(broken.run_dir, log_offsets)
    resumed_run = make_run_info(tmp_path / "broken", completed_steps=20)
    with open_recorder(TensorBoardRecorder(preview_every=1), resumed_run) as resumed:
        record_snapshots(resumed, resumed_run, (30, 40))
    assert len(list((tmp_path / "broken").glob("events.*"))) == 2
    assert read_scalars(tmp_path / "broken") == read_scalars(tmp_path / "straight")
    previews = [read_events(tmp_path / name).Images("previews/reconstructions") for name in ("straight", "broken")]
    assert [image.step for image in previews[0]] == [image.step for image in previews[1]] == [0, 10, 20, 30, 40]


def test_previews_of_a_long_run_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genexp.recorders.tensorboard.MAX_PREVIEWS", 4)
    run = make_run_info(tmp_path, total_steps=170)
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        for step in range(0, 171, 10):
            recorder.record(Snapshot(make_clock(step, run), preview_images={"samples": make_image(step)}))
    steps = [image.step for image in read_events(tmp_path).Images("previews/samples")]
    assert steps == [0, 80, 160, 170]


def test_running_tensorboard_drops_truncated_steps(tmp_path: Path) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as killed:
        record_snapshots(killed, run, (10, 20))
        log_offsets = flush_and_measure_logs(killed, run)
        record_snapshots(killed, run, (30,))
        killed.flush()
        watcher = read_events(tmp_path)
        assert [event.step for event in watcher.Scalars("losses/loss/train")] == list(range(1, 31))
    truncate_logs(tmp_path, log_offsets)
    resumed_run = make_run_info(tmp_path, completed_steps=20)
    with open_recorder(TensorBoardRecorder(preview_every=1), resumed_run) as resumed:
        record_snapshots(resumed, resumed_run, (30, 40))
    watcher.Reload()
    assert [event.step for event in watcher.Scalars("losses/loss/train")] == list(range(1, 41))


def test_tensorboard_server_returns_scalars_and_hyperparameters(tmp_path: Path) -> None:
    run = make_run_info(tmp_path / "run")
    with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
        record_snapshots(recorder, run, (0, 10, 20))
        recorder.record(
            make_snapshot(40, run, test_metrics={"psnr": 14.0}, final_artifacts=make_final_artifacts())
        )
    with start_tensorboard(tmp_path) as address:
        data = f"{address}/data/plugin"
        assert set(query_tensorboard(f"{data}/scalars/tags")["run"]) == {
            "losses/loss/train",
            "metrics/kl/train",
            "metrics/psnr/test",
        }
        points = query_tensorboard(f"{data}/scalars/scalars?run=run&tag=metrics/psnr/test")
        assert [(step, value) for _, step, value in points] == [(10, 11), (20, 12), (40, 14)]
        experiment = query_tensorboard(f"{data}/hparams/experiment", experimentName="")
        assert {info["name"] for info in experiment["hparamInfos"]} == {"model.name", "seed"}
        metrics = [{"name": {"tag": "metrics/psnr/test", "group": ""}}]
        question = {"colParams": [{"metric": metrics[0]["name"]}], "startIndex": 0, "sliceSize": 10}
        [group] = query_tensorboard(
            f"{data}/hparams/session_groups", **question, allowedStatuses=["STATUS_SUCCESS"]
        )["sessionGroups"]
        assert {value["name"]["tag"]: value["value"] for value in group["metricValues"]}["metrics/psnr/test"] == 14
        assert query_tensorboard(f"{data}/projector/runs") == ["run"]


def test_tensorboard_server_lists_runs_by_readable_names(tmp_path: Path) -> None:
    for number in range(2):
        run_dir = make_run_dir(tmp_path / "sweep" / str(number), overrides={"seed": number})
        run = make_run_info(run_dir)
        with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
            record_snapshots(recorder, run, (0, 10))
    link_tensorboard_logs(compare([tmp_path / "sweep"]), tmp_path / "logs")
    with start_tensorboard(tmp_path / "logs") as address:
        runs = query_tensorboard(f"{address}/data/plugin/scalars/tags")
        columns = query_tensorboard(f"{address}/data/plugin/hparams/experiment", experimentName="")
    assert [info["name"] for info in columns["hparamInfos"]] == ["seed"]
    assert [info["name"]["tag"] for info in columns["metricInfos"]] == ["metrics/mse/test"]
    assert set(runs) == {"stacked_autoencoder/0 seed=0", "stacked_autoencoder/1 seed=1"}


def record_sweep(sweep_dir: Path) -> dict[str, tuple[float, float]]:
    """Record two learning rates with two seeds each, and return run → (rate, psnr)."""
    expected = {}
    for number, (rate, seed) in enumerate(((0.001, 0), (0.001, 1), (0.01, 0), (0.01, 1))):
        config = {"seed": seed, "optimizer": {"name": "adam", "lr": rate}}
        run = make_run_info(sweep_dir / str(number), config=config)
        (run.run_dir / ".hydra").mkdir(parents=True)
        (run.run_dir / ".hydra" / "overrides.yaml").write_text(f"- optimizer.lr={rate}\n- seed={seed}\n")
        with open_recorder(TensorBoardRecorder(preview_every=1), run) as recorder:
            record_snapshots(recorder, run, (0, 10, 20, 30))
            recorder.record(make_snapshot(40, run, test_metrics={"psnr": 20.0 + number}))
        expected[str(number)] = rate, 20.0 + number
    return expected


def wait_for_sessions(address: str, sessions: int) -> None:
    """Wait until TensorBoard has read that every run has ended."""
    question = {"startIndex": 0, "sliceSize": 100, "allowedStatuses": ["STATUS_SUCCESS"]}
    for _ in range(100):
        if query_tensorboard(f"{address}/hparams/session_groups", **question).get("totalSize") == sessions:
            return
        time.sleep(0.2)
    raise AssertionError("not all runs are there")


def test_tensorboard_server_compares_a_sweep(tmp_path: Path) -> None:
    expected = record_sweep(tmp_path)
    with start_tensorboard(tmp_path) as address:
        data = f"{address}/data/plugin"
        wait_for_sessions(data, len(expected))
        experiment = query_tensorboard(f"{data}/hparams/experiment", experimentName="")
        differing = [info["name"] for info in experiment["hparamInfos"] if info.get("differs")]
        assert sorted(differing) == ["optimizer.lr", "seed"]
        assert differing == [info["name"] for info in experiment["hparamInfos"]][:2], "the page shows these first"
        assert "metrics/psnr/test" in {info["name"]["tag"] for info in experiment["metricInfos"]}
        by_psnr = {"metric": {"tag": "metrics/psnr/test", "group": ""}, "order": "ORDER_DESC"}
        question = {"colParams": [by_psnr], "startIndex": 0, "sliceSize": 10}
        answer = query_tensorboard(
            f"{data}/hparams/session_groups", **question, allowedStatuses=["STATUS_SUCCESS"]
        )
        found = {}
        for group in answer["sessionGroups"]:
            psnr = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}["metrics/psnr/test"]
            found[group["name"]] = group["hparams"]["optimizer.lr"], psnr
        assert found == expected
        assert list(found) == sorted(expected, reverse=True)


@pytest.mark.browser
@needs_browser
def test_browser_shows_a_sweep_on_the_hparams_page(tmp_path: Path) -> None:
    expected = record_sweep(tmp_path / "sweep")
    with start_tensorboard(tmp_path / "sweep") as address, start_browser(tmp_path / "profile") as page:
        wait_for_sessions(f"{address}/data/plugin", len(expected))
        page.set_viewport(1500, 1000)
        page.visit(f"{address}/#hparams")
        expected_texts = [*expected, "optimizer.lr", "seed", "metrics/psnr/test", "23.000"]
        try:
            page.wait(
                f"{COLLECT_TEXTS_SCRIPT} return {expected_texts}.every((word) => words.includes(word))", seconds=40
            )
        finally:
            page.save_screenshot(Path(os.environ.get("GENEXP_SCREENSHOTS", tmp_path)) / "hparams.png")
