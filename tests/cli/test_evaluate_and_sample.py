"""Commands on finished runs: metrics, generated files and errors of `genexp-evaluate` and `genexp-sample`."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import logging
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from genexp.cli import evaluate, sample
from genexp.cli.generate import OUTPUT_TYPES, GenerationRequest, list_output_types
from genexp.data import load_dataset
from genexp.data.loading import make_loader
from genexp.networks.inception import Inception, prepare_torch_fidelity_import
from genexp.run_dir import paths
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from genexp.runs.build import build_technique
from genexp.runs.load import LoadedRun, find_checkpoint
from genexp.technique import list_techniques
from tests.support.command import (
    CommandResult,
    format_run_dir_override,
    get_error_line,
    load_status,
    read_metrics_log,
    run_genexp,
    run_main,
)
from tests.support.compose import compose_config, compose_experiment, make_tiny_overrides
from tests.support.datasets import load_values

needs_torch_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="needs the extra inception"
)


def run_tool(main: Callable[[], Any], *arguments: str | Path) -> CommandResult:
    """Run a command on finished runs in this process. It must end by exiting."""

    def run_until_exit() -> None:
        main()
        raise AssertionError("the command returned instead of exiting")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])  # handlers of runs in this process
        patch.setenv("COLUMNS", "200")
        return run_main("tool", run_until_exit, *map(str, arguments))


def run_sample(*arguments: str | Path) -> list[Path]:
    """Run genexp-sample, which must succeed, and return the paths that it prints."""
    result = run_tool(sample.main, *arguments)
    assert result.exit_code == 0, result.stderr
    return [Path(line) for line in result.stdout.splitlines()]


def get_tool_error(main: Callable[[], Any], *arguments: str | Path) -> str:
    """Run a command that must fail and return its error line."""
    return get_error_line(run_tool(main, *arguments), "genexp-evaluate", "genexp-sample")


@pytest.fixture(scope="module")
def vae_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vae"
    interval_overrides = ("trainer.epochs=2", "trainer.keep_checkpoints=3", "trainer.ema=0.9", "model.beta=4")
    assert (
        run_genexp(*make_tiny_overrides("vae"), *interval_overrides, format_run_dir_override(folder)).exit_code
        == 0
    )
    return folder


@pytest.fixture
def vae_run_copy(vae_run_dir: Path, tmp_path: Path) -> Path:
    """Return a copy of a run, to be damaged by a test."""
    return Path(shutil.copytree(vae_run_dir, tmp_path / "copy"))


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of images in several formats and modes, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    Image.new("RGB", (60, 40), (250, 20, 20)).save(folder / "red.jpg")
    Image.new("L", (28, 28), 128).save(folder / "gray.png")
    Image.new("RGBA", (9, 30), (0, 0, 0, 255)).save(folder / "gray.gif")
    Image.new("1", (5, 5), 1).save(folder / "more" / "red.bmp")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def test_evaluation_repeats_the_test_metrics_of_training(vae_run_dir: Path) -> None:
    """The metrics of the EMA weights are the same from the best and from the newest checkpoint."""
    for checkpoint in ("best", "newest"):
        result = run_tool(evaluate.main, vae_run_dir, "--checkpoint", checkpoint, "--nll-samples", "5")
        assert result.exit_code == 0, result.stderr
        written = json.loads((vae_run_dir / "evaluation.json").read_text())
        test_lines = {line["step"]: line for line in read_metrics_log(vae_run_dir) if line["split"] == "test"}
        recorded = test_lines[written["step"]]
        own = {name: value for name, value in recorded.items() if name not in ("step", "epoch", "split")}
        assert own.items() <= written["metrics"].items()
        assert all(name in result.stdout for name in written["metrics"])
        extra = {"knn_accuracy", "linear_probe_accuracy", "frechet_mnist-v1", "nll_5"}
        assert extra <= written["metrics"].keys()
        assert "coverage_mnist-v1" not in written["metrics"]  # it requires 1,000 test images
        reason = written["left_out"]["neighborhood"]
        assert reason.startswith("dataset=mnist_5k: 10 test images, but precision, recall, density and coverage")
        assert f"{vae_run_dir}: neighborhood scores are skipped: {reason}" in result.stderr.splitlines()
        assert (written["model"], written["dataset"], written["samples"]) == ("vae", "mnist_5k", 10)
        assert (written["options"]["generated"], written["options"]["real"]) == (10, 10)
        assert "generation: 10 generated and 10 test images" in result.stdout.splitlines()
    assert written["step"] == load_status(vae_run_dir)["step"]
    assert written["checkpoint"] == f"checkpoints/{list_checkpoints(vae_run_dir)[0].name}"


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_1000_images_have_all_generation_scores(name: str, tmp_path: Path) -> None:
    """The scores of a GAN are its own. Those of a VAE are added."""
    overrides = [word for word in make_tiny_overrides(name) if "limit" not in word and "samples" not in word]
    overrides += ["trainer.max_steps=1", format_run_dir_override(tmp_path)]
    assert run_genexp(*overrides).exit_code == 0
    assert "coverage" not in (tmp_path / "train.log").read_text()  # no warning
    result = run_tool(evaluate.main, tmp_path, "--nll-samples", "0")
    assert result.exit_code == 0, result.stderr
    written = json.loads((tmp_path / "evaluation.json").read_text())
    names = {f"{score}_mnist-v1" for score in ("frechet", "precision", "recall", "density", "coverage")}
    assert names <= written["metrics"].keys()
    assert written["left_out"] == {}
    assert (written["options"]["generated"], written["options"]["real"]) == (1000, 1000)
    assert "generation: 1,000 generated and 1,000 test images" in result.stdout.splitlines()


class MeanExtractor(nn.Module):
    """Stands for Inception. The features of an image are means of its columns."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        assert images.dtype == torch.uint8
        return (images.float().mean((1, 2)) / 255,)


@needs_torch_fidelity
def test_inception_scores_state_samples_and_weights(
    vae_run_dir: Path, kmeans_run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path | None] = []

    def load_fake(path: Path | None) -> Inception:
        paths.append(path)
        return Inception(MeanExtractor(), "0123abcd")

    monkeypatch.setattr("genexp.networks.inception.load_inception", load_fake)
    arguments = ("--inception", "--inception-weights", "file.pth", "--nll-samples", "0")
    result = run_tool(evaluate.main, vae_run_dir, kmeans_run_dir, *arguments)
    assert result.exit_code == 0, result.stderr
    assert paths == [Path("file.pth")]  # once for both runs
    written = json.loads((vae_run_dir / "evaluation.json").read_text())
    assert written["metrics"]["fid_inception"] > 0
    assert written["metrics"].keys() & {"kid_inception", "kid_inception_std"} == {"kid_inception"}
    expected = {"inception_generated": 10, "inception_real": 10, "inception_weights": "0123abcd"}
    assert {**expected, "kid_subsets": 1, "kid_subset_size": 10}.items() <= written["options"].items()
    assert "inception: 10 generated and 10 test images, weights 0123abcd" in result.stdout.splitlines()
    assert "--inception: the weights are not the published ones." in result.stderr
    reason = "model=kmeans: generates no images on dataset=digits. Remove --inception."
    assert f"{kmeans_run_dir}: inception scores are skipped: {reason}" in result.stderr.splitlines()
    assert json.loads((kmeans_run_dir / "evaluation.json").read_text())["left_out"]["inception"] == reason
    unlike = run_tool(evaluate.main, vae_run_dir, "--nll-samples", "0").stderr
    assert "inception" not in unlike


@needs_torch_fidelity
@pytest.mark.slow
def test_inception_with_a_weight_file_gives_fid_and_kid(
    vae_run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network has random weights, which keep the variance of its features."""
    prepare_torch_fidelity_import()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda network, weights: None)
        torch.save({}, tmp_path / "empty.pth")
        network = FeatureExtractorInceptionV3(
            "random", ["2048"], feature_extractor_weights_path=tmp_path / "empty.pth"
        )
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    weight_file = tmp_path / "inception.pth"
    torch.save(network.state_dict(), weight_file)
    arguments = ("--inception", "--inception-weights", weight_file, "--nll-samples", "0")
    result = run_tool(evaluate.main, vae_run_dir, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "the weights are not the published ones" in result.stderr
    written = json.loads((vae_run_dir / "evaluation.json").read_text())
    assert written["metrics"]["fid_inception"] > 0
    assert math.isfinite(written["metrics"]["kid_inception"])
    checksum = hashlib.sha256(weight_file.read_bytes()).hexdigest()
    assert written["options"]["inception_weights"] == checksum[:8]


def test_zero_nll_samples_skip_the_likelihood_and_json_is_one_line(vae_run_dir: Path) -> None:
    result = run_tool(evaluate.main, vae_run_dir, "--nll-samples", "0", "--json")
    (line,) = result.stdout.splitlines()
    assert not any("nll" in name for name in json.loads(line)["metrics"])
    assert json.loads(line) == json.loads((vae_run_dir / "evaluation.json").read_text())


def test_invalid_run_does_not_stop_evaluation_of_the_others(vae_run_dir: Path, tmp_path: Path) -> None:
    result = run_tool(evaluate.main, tmp_path, vae_run_dir, "--nll-samples", "0")
    assert result.exit_code == 1
    assert f"{tmp_path}: not a run directory" in result.stderr
    assert "knn_accuracy" in result.stdout


def test_checkpoint_is_found_by_name_and_by_path(vae_run_dir: Path) -> None:
    newest, *_, oldest = list_checkpoints(vae_run_dir)
    assert find_checkpoint(vae_run_dir, oldest.name) == find_checkpoint(vae_run_dir, str(oldest)) == oldest
    assert find_checkpoint(vae_run_dir, "newest") == newest


def test_sample_depends_only_on_seed_and_index(vae_run_dir: Path, tmp_path: Path) -> None:
    def pixels(*arguments: str) -> list[bytes]:
        _, folder = run_sample(vae_run_dir, "samples", "--output", tmp_path / "-".join(arguments), *arguments)
        files = sorted(folder.iterdir())
        return [file.read_bytes() for file in files]

    few, many, other = pixels("--count", "3"), pixels("--count", "101"), pixels("--count", "3", "--seed", "1")
    assert len(few) == 3
    assert len(many) == 101
    assert few == many[:3]
    assert not set(few) & set(other)


def test_vae_writes_every_output_type_into_its_run_directory(vae_run_dir: Path) -> None:
    paths = run_sample(vae_run_dir)
    names = [path.name for path in paths]
    assert names == [
        *("samples.png", "samples", "reconstructions.png"),
        *("interpolation.png", "interpolation.gif", "traversal.png", "traversal.gif"),
    ]
    assert all(path.parent == vae_run_dir / "made" for path in paths)
    for path in paths:
        if path.suffix == ".gif":
            with Image.open(path) as animation:
                assert 30 <= getattr(animation, "n_frames", 1) <= 40  # equal frames are one


def test_video_is_written_beside_a_gif(vae_run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (vae_run_dir, "traversal", "--count", "2", "--video", "--output", tmp_path / "made")
    monkeypatch.setattr("genexp.cli.sample.can_encode", lambda video_format: False)
    assert get_error_line(run_tool(sample.main, *arguments), "genexp-sample").endswith("'genexp[video]'`.")
    monkeypatch.undo()
    pytest.importorskip("av", reason="needs the extra video")
    assert run_tool(sample.main, *arguments).exit_code == 0
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        f"traversal.{end}" for end in ("png", "gif", "mp4")
    }
    assert (tmp_path / "made" / "traversal.mp4").read_bytes()[4:8] == b"ftyp"


def test_input_images_are_reconstructed_under_their_own_names(
    vae_run_dir: Path, image_dir: Path, tmp_path: Path
) -> None:
    result = run_tool(sample.main, vae_run_dir, "reconstructions", "--input", image_dir, "--output", tmp_path)
    folder = tmp_path / "reconstructions"
    assert result.stdout.splitlines() == [f"{folder}.png", str(folder)]
    assert result.stderr.startswith("skipped: ")
    assert "broken.png: not readable as an image" in result.stderr
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    assert found == ["gray.gif.png", "gray.png.png", "more/red.png", "red.png"]
    with Image.open(folder / "red.png") as image:
        assert (image.size, image.mode) == ((28, 28), "L")
    assert run_sample(vae_run_dir, "traversal", "--input", image_dir / "red.jpg", "--output", tmp_path)


@pytest.fixture(scope="module")
def kmeans_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "kmeans"
    overrides = ("dataset=digits", "dataset.limit=90", "model.clusters=5")
    assert run_genexp(*make_tiny_overrides("kmeans"), *overrides, format_run_dir_override(folder)).exit_code == 0
    return folder


def test_clusters_are_scored_on_both_splits(kmeans_run_dir: Path) -> None:
    assert run_tool(evaluate.main, kmeans_run_dir).exit_code == 0
    scores = json.loads((kmeans_run_dir / "evaluation.json").read_text())["metrics"]
    assert {"acc", "nmi", "ari", "train_acc", "train_nmi", "train_ari"} <= scores.keys()
    assert 0.2 < scores["train_acc"] < 0.6  # five clusters cannot match more than five of ten digits


def test_clusters_are_written_as_a_table_of_the_test_split(kmeans_run_dir: Path) -> None:
    folder = kmeans_run_dir
    (path,) = run_sample(folder)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    test = load_test_labels(folder)
    assert [int(row["index"]) for row in rows] == list(range(len(test)))
    assert [int(row["label"]) for row in rows] == test
    assert {int(row["cluster"]) for row in rows} <= set(range(5))
    assert len({row["cluster"] for row in rows}) > 1


def load_test_labels(folder: Path) -> list[int]:
    labels = load_values(OmegaConf.load(folder / "config.yaml").dataset).test.streams["label"]
    assert isinstance(labels, torch.Tensor)
    return list(labels.tolist())


@pytest.mark.parametrize("name", list_techniques())
def test_every_technique_generates_its_declared_output_types(name: str, tmp_path: Path) -> None:
    """Check the number of images and files. The technique is untrained: their content does not matter."""
    small = ["dataset.size=24"] if name == "style_transfer" else []
    config = compose_experiment(*make_tiny_overrides(name), *small)
    device = torch.device("cpu")
    dataset = load_dataset(config.dataset)
    technique = build_technique(config.technique, config.model, dataset, device, 0)
    run = LoadedRun(
        tmp_path, technique, dataset, make_loader(dataset.test, device), device, 0, tmp_path / "best.pt", 0
    )
    before = {key: value.clone() for key, value in technique.state_dict().items()}
    for product in list_output_types(type(technique)):
        paths = OUTPUT_TYPES[product].generate(GenerationRequest(run, tmp_path / product, seed=0, count=3))
        assert paths
        assert all(path.exists() for path in paths)
        for path in paths:
            assert path.is_file() or len(list(path.iterdir())) == 3
    assert all(torch.equal(value, before[key]) for key, value in technique.state_dict().items())


def test_translations_keep_the_names_and_sizes_of_the_inputs(image_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert (
        run_genexp(
            *make_tiny_overrides("pix2pix"), "trainer.max_steps=1", format_run_dir_override(folder)
        ).exit_code
        == 0
    )
    grid_path, files = run_sample(folder, "translations", "--input", image_dir, "--count", "4")
    assert files == folder / "made" / grid_path.stem
    with Image.open(files / "more" / "red.png") as image:
        assert image.size == (28, 28)
    assert len(list(files.rglob("*.png"))) == 3  # one of the four images is broken


def test_help_lists_all_output_types_without_importing_torch() -> None:
    assert sample.OUTPUT_TYPE_HELP.keys() == OUTPUT_TYPES.keys()
    code = "import sys; from genexp.cli import evaluate, sample; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(name in run_tool(sample.main, "--help").stdout for name in OUTPUT_TYPES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["clusters"],
            "clusters: not supported by model=vae. Use one of: samples, reconstructions, interpolation",
        ),
        (["sampels"], "sampels: unknown output type. Did you mean samples?"),
        (["samples", "--count", "0"], "--count: 0 is not an integer of at least 1"),
        (["samples", "--count", "ten"], "--count: ten is not an integer of at least 1"),
        (["samples", "--color"], "unrecognized arguments: --color. See"),
        (["samples", "--input", "."], "samples: takes no input images. Remove --input."),
        (["reconstructions", "--input", "nowhere"], "--input nowhere: not found"),
        (["interpolation", "--count", "1"], "interpolation: requires at least two images"),
        (["samples", "--checkpoint", "last"], "--checkpoint last: not found, also not in"),
        (["samples", "--output", "/dev/null"], "/dev/null"),
    ],
)
def test_invalid_sample_arguments_fail_with_one_line(
    vae_run_dir: Path, arguments: list[str], message: str
) -> None:
    assert message in get_tool_error(sample.main, vae_run_dir, *arguments)


def test_inputs_that_are_not_images_are_rejected(vae_run_dir: Path, image_dir: Path, tmp_path: Path) -> None:
    assert "contains no images" in get_tool_error(sample.main, vae_run_dir, "reconstructions", "--input", tmp_path)
    line = get_tool_error(sample.main, vae_run_dir, "reconstructions", "--input", image_dir / "broken.png")
    assert "broken.png: not readable as an image" in line


@pytest.mark.parametrize("main", [evaluate.main, sample.main])
def test_unusable_run_fails_with_one_line(main: Callable[[], Any], vae_run_copy: Path, tmp_path: Path) -> None:
    assert "not a run directory" in get_tool_error(main, tmp_path / "nowhere")
    best = find_checkpoint(vae_run_copy, "best")
    whole = best.read_bytes()
    best.write_bytes(whole[:-1000])
    assert f"{best.name}: damaged" in get_tool_error(main, vae_run_copy)
    best.write_bytes(whole)
    config = (vae_run_copy / "config.yaml").read_text()
    (vae_run_copy / "config.yaml").write_text(config.replace("latent: 20", "latent: 3"))
    assert f"{best.name}: does not match model=vae" in get_tool_error(main, vae_run_copy)
    (vae_run_copy / "config.yaml").write_text("model: [")
    assert "config.yaml: not plain YAML (line 2: " in get_tool_error(main, vae_run_copy)
    (vae_run_copy / "config.yaml").write_text(config)
    content = {**load_checkpoint(best), "progress": {}}
    del content["format"]
    save_checkpoint(best, content)
    assert "nothing was evaluated. Use --checkpoint newest" in get_tool_error(main, vae_run_copy)
    shutil.rmtree(vae_run_copy / "checkpoints")
    assert "stopped before its first checkpoint" in get_tool_error(main, vae_run_copy)


def test_inception_without_its_package_or_option_fails_with_one_line(
    vae_run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = get_tool_error(evaluate.main, vae_run_dir, "--inception-weights", "file.pth")
    assert "--inception-weights file.pth: no effect. Add --inception." in line
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torch_fidelity" else find_spec(name, *rest),
    )
    line = get_tool_error(evaluate.main, vae_run_dir, "--inception")
    assert "--inception: requires torch-fidelity. Run `pip install 'genexp[inception]'`." in line


def test_missing_dataset_is_reported(vae_run_copy: Path) -> None:
    config = OmegaConf.load(vae_run_copy / "config.yaml")
    config.dataset = compose_config("dataset=image_folder", "dataset.root=/nowhere").dataset
    OmegaConf.save(config, vae_run_copy / "config.yaml")
    assert "dataset.root=/nowhere: not a directory" in get_tool_error(evaluate.main, vae_run_copy)


def test_trained_techniques_of_the_repository_generate_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = run_sample("gallery:cgan", "samples", "--count", "10")
    assert written[-1].parent == Path("outputs/made/cgan")
    assert len(list(Path("outputs/made/cgan").rglob("*.png"))) == 11  # ten digits and a grid of them
    assert "gallery:cgna: not in the gallery. Use one of: " in get_tool_error(sample.main, "gallery:cgna")
    monkeypatch.setattr(paths, "GALLERY_DIR", tmp_path / "absent")
    assert "Use a clone of the repository" in get_tool_error(sample.main, "gallery:cgan")
