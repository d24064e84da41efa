"""The tools on finished runs: what they measure, what they make, and how they complain."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
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

from genexp.cli import evaluate, sample
from genexp.cli.generate import OUTPUT_TYPES, GenerationRequest, list_output_types
from genexp.data.loading import make_loader
from genexp.run_dir.checkpoint import list_checkpoints
from genexp.runs.build import build_technique
from genexp.runs.load import LoadedRun, find_checkpoint
from genexp.technique import list_techniques
from tests.support.command import Ended, genexp, in_folder, metrics, status
from tests.support.compose import composed, tiny


def command(main: Callable[[], Any], *arguments: str | Path) -> Ended:
    """Run a tool in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["tool", *map(str, arguments)])
        patch.setattr(logging.getLogger(), "handlers", [])  # those of runs in this process
        patch.setenv("COLUMNS", "200")
        try:
            main()
        except SystemExit as ending:
            if isinstance(ending.code, str):
                return Ended(1, out.getvalue(), err.getvalue() + ending.code + "\n")
            return Ended(int(ending.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("a tool ends by exiting")


def made(*arguments: str | Path) -> list[Path]:
    """Run genexp-sample, which must succeed, and return the files and folders that it names."""
    ended = command(sample.main, *arguments)
    assert ended.code == 0, ended.err
    return [Path(line) for line in ended.out.splitlines()]


def complaint(main: Callable[[], Any], *arguments: str | Path) -> str:
    """Run what must fail, and return its one line."""
    ended = command(main, *arguments)
    assert ended.code == 1, ended
    (line,) = ended.err.splitlines()
    assert line.startswith(("genexp-evaluate: ", "genexp-sample: "))
    return line


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vae"
    often = ("trainer.epochs=2", "trainer.checkpoint_every=1", "trainer.ema=0.9", "model.beta=4")
    assert genexp(*tiny("vae"), *often, in_folder(folder)).code == 0
    return folder


@pytest.fixture
def copy(vae: Path, tmp_path: Path) -> Path:
    """Return a run to be damaged."""
    return Path(shutil.copytree(vae, tmp_path / "copy"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pictures of many kinds, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    Image.new("RGB", (60, 40), (250, 20, 20)).save(folder / "red.jpg")
    Image.new("L", (28, 28), 128).save(folder / "gray.png")
    Image.new("RGBA", (9, 30), (0, 0, 0, 255)).save(folder / "gray.gif")
    Image.new("1", (5, 5), 1).save(folder / "more" / "red.bmp")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def test_the_techniques_own_scores_are_those_it_had_in_training(vae: Path) -> None:
    """Those of the averaged weights, which were judged, from either kind of checkpoint."""
    for which in ("best", "newest"):
        ended = command(evaluate.main, vae, "--checkpoint", which, "--nll-samples", "5")
        assert ended.code == 0, ended.err
        written = json.loads((vae / "evaluation.json").read_text())
        judged = {line["step"]: line for line in metrics(vae) if line["split"] == "test"}
        recorded = judged[written["step"]]
        own = {name: value for name, value in recorded.items() if name not in ("step", "epoch", "split")}
        assert own.items() <= written["metrics"].items()
        assert all(name in ended.out for name in written["metrics"])
        extra = {"knn_accuracy", "linear_probe_accuracy", "frechet", "coverage_mnist-v1", "nll_5"}
        assert extra <= written["metrics"].keys()
        assert (written["model"], written["dataset"], written["samples"]) == ("vae", "mnist_5k", 10)
        assert written["options"]["generated"] == 10  # as many as there are real ones to compare with
    assert written["step"] == status(vae)["step"]
    assert written["checkpoint"] == f"checkpoints/{list_checkpoints(vae)[0].name}"


def test_a_likelihood_of_no_samples_is_left_out_and_json_is_a_line(vae: Path) -> None:
    ended = command(evaluate.main, vae, "--nll-samples", "0", "--json")
    (line,) = ended.out.splitlines()
    assert not any("nll" in name for name in json.loads(line)["metrics"])
    assert json.loads(line) == json.loads((vae / "evaluation.json").read_text())


def test_one_bad_run_among_several_does_not_hide_the_others(vae: Path, tmp_path: Path) -> None:
    ended = command(evaluate.main, tmp_path, vae, "--nll-samples", "0")
    assert ended.code == 1
    assert f"{tmp_path} is no run's folder" in ended.err
    assert "knn_accuracy" in ended.out


def test_a_checkpoint_is_found_by_its_name_and_by_its_path(vae: Path) -> None:
    newest, *_, oldest = list_checkpoints(vae)
    assert find_checkpoint(vae, oldest.name) == find_checkpoint(vae, str(oldest)) == oldest
    assert find_checkpoint(vae, "newest") == newest


def test_a_sample_depends_on_the_seed_and_its_number_alone(vae: Path, tmp_path: Path) -> None:
    def pixels(*arguments: str) -> list[bytes]:
        _, folder = made(vae, "samples", "--output", tmp_path / "-".join(arguments), *arguments)
        files = sorted(folder.iterdir())
        return [file.read_bytes() for file in files]

    few, many, other = pixels("--count", "3"), pixels("--count", "101"), pixels("--count", "3", "--seed", "1")
    assert len(few) == 3
    assert len(many) == 101
    assert few == many[:3]
    assert not set(few) & set(other)


def test_a_vae_makes_all_it_can_into_its_own_folder(vae: Path) -> None:
    paths = made(vae)
    names = [path.name for path in paths]
    assert names == [
        *("samples.png", "samples", "reconstructions.png"),
        *("interpolation.png", "interpolation.gif", "traversal.png", "traversal.gif"),
    ]
    assert all(path.parent == vae / "made" for path in paths)
    for path in paths:
        if path.suffix == ".gif":
            with Image.open(path) as animation:
                assert getattr(animation, "n_frames", 1) == 40


def test_a_users_pictures_are_reconstructed_each_under_its_own_name(
    vae: Path, pictures: Path, tmp_path: Path
) -> None:
    ended = command(sample.main, vae, "reconstructions", "--input", pictures, "--output", tmp_path)
    folder = tmp_path / "reconstructions"
    assert ended.out.splitlines() == [f"{folder}.png", str(folder)]
    assert ended.err.startswith("left out: ")
    assert "broken.png cannot be read" in ended.err
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    assert found == ["gray.gif.png", "gray.png.png", "more/red.png", "red.png"]
    with Image.open(folder / "red.png") as image:
        assert (image.size, image.mode) == ((28, 28), "L")
    assert made(vae, "traversal", "--input", pictures / "red.jpg", "--output", tmp_path)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "kmeans"
    words = ("dataset=digits", "dataset.limit=90", "model.clusters=5")
    assert genexp(*tiny("kmeans"), *words, in_folder(folder)).code == 0
    return folder


def test_clusters_are_judged_on_both_splits(clustered: Path) -> None:
    assert command(evaluate.main, clustered).code == 0
    scores = json.loads((clustered / "evaluation.json").read_text())["metrics"]
    assert {"acc", "nmi", "ari", "train_acc", "train_nmi", "train_ari"} <= scores.keys()
    assert 0.2 < scores["train_acc"] < 0.6  # five clusters cannot match more than five of ten digits


def test_clusters_are_a_table_of_the_test_split(clustered: Path) -> None:
    folder = clustered
    (path,) = made(folder)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    test = load_test_labels(folder)
    assert [int(row["index"]) for row in rows] == list(range(len(test)))
    assert [int(row["label"]) for row in rows] == test
    assert {int(row["cluster"]) for row in rows} <= set(range(5))
    assert len({row["cluster"] for row in rows}) > 1


def load_test_labels(folder: Path) -> list[int]:
    from genexp.data import load_dataset

    labels = load_dataset(OmegaConf.load(folder / "config.yaml").dataset).test.streams["label"]
    assert isinstance(labels, torch.Tensor)
    return list(labels.tolist())


@pytest.mark.parametrize("name", list_techniques())
def test_every_technique_makes_what_it_declares(name: str, tmp_path: Path) -> None:
    """Untrained, since only what comes out counts: as many pictures and files as were asked for."""
    small = ["dataset.size=24"] if name == "style_transfer" else []
    cfg = OmegaConf.to_container(composed(*tiny(name), *small), resolve=True)
    assert isinstance(cfg, dict)
    config = {str(key): value for key, value in cfg.items()}
    device = torch.device("cpu")
    technique, dataset = build_technique(config, device, 0)
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


def test_translations_of_a_folder_have_the_names_and_the_size_of_the_inputs(
    pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert genexp(*tiny("pix2pix"), "trainer.max_steps=1", in_folder(folder)).code == 0
    picture, files = made(folder, "translations", "--input", pictures, "--count", "4")
    assert files == folder / "made" / picture.stem
    with Image.open(files / "more" / "red.png") as image:
        assert image.size == (28, 28)
    assert len(list(files.rglob("*.png"))) == 3  # of four, one is broken


def test_help_names_all_that_can_be_made_and_does_not_wait_for_torch() -> None:
    assert sample.OUTPUT_TYPE_HELP.keys() == OUTPUT_TYPES.keys()
    code = "import sys; from genexp.cli import evaluate, sample; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(name in command(sample.main, "--help").out for name in OUTPUT_TYPES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["clusters"],
            "clusters: model=vae cannot make that; it can make: samples, reconstructions, interpolation",
        ),
        (["sampels"], "sampels is nothing that can be made; did you mean samples?"),
        (["samples", "--count", "0"], "--count: 0 is no whole number of at least 1"),
        (["samples", "--count", "ten"], "--count: ten is no whole number of at least 1"),
        (["samples", "--color"], "unrecognized arguments: --color; see"),
        (["samples", "--input", "."], "samples: nothing of that is made from images; leave out --input"),
        (["reconstructions", "--input", "nowhere"], "--input nowhere is no file and no folder"),
        (["interpolation", "--count", "1"], "an interpolation needs two images or more"),
        (["samples", "--checkpoint", "last"], "--checkpoint last is no file, and none in"),
        (["samples", "--output", "/dev/null"], "/dev/null"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line(vae: Path, arguments: list[str], said: str) -> None:
    assert said in complaint(sample.main, vae, *arguments)


def test_inputs_that_are_no_pictures(vae: Path, pictures: Path, tmp_path: Path) -> None:
    assert "holds no pictures" in complaint(sample.main, vae, "reconstructions", "--input", tmp_path)
    line = complaint(sample.main, vae, "reconstructions", "--input", pictures / "broken.png")
    assert "broken.png cannot be read" in line


@pytest.mark.parametrize("main", [evaluate.main, sample.main])
def test_a_run_that_cannot_be_used(main: Callable[[], Any], copy: Path, tmp_path: Path) -> None:
    assert "is no run's folder" in complaint(main, tmp_path / "nowhere")
    best = copy / "checkpoints" / "best.pt"
    whole = best.read_bytes()
    best.write_bytes(whole[:-1000])
    assert "best.pt is damaged" in complaint(main, copy)
    best.write_bytes(whole)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("latent: 20", "latent: 3"))
    assert "best.pt does not fit model=vae" in complaint(main, copy)
    (copy / "config.yaml").write_text("model: [")
    assert "config.yaml is damaged" in complaint(main, copy)
    (copy / "config.yaml").write_text(config)
    best.unlink()
    assert "nothing was evaluated; use --checkpoint newest" in complaint(main, copy)
    shutil.rmtree(copy / "checkpoints")
    assert "has no checkpoint" in complaint(main, copy)


def test_a_data_set_that_is_gone(copy: Path) -> None:
    config = OmegaConf.load(copy / "config.yaml")
    config.dataset = composed("dataset=image_folder", "dataset.root=/nowhere").dataset
    OmegaConf.save(config, copy / "config.yaml")
    assert "dataset.root=/nowhere is no folder" in complaint(evaluate.main, copy)
