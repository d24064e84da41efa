"""Data sets `table` and `arrays`: formats, labels, splits, scaling, runs on them, and damaged files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genexp.cli.evaluate import main as evaluate_main
from genexp.cli.export import main as export_main
from genexp.cli.sample import main as sample_main
from genexp.data.dataset import Dataset
from genexp.errors import ConfigError, DataError
from tests.support.command import (
    CommandResult,
    format_run_dir_override,
    get_error_line,
    load_status,
    run_genexp,
    run_main,
)
from tests.support.compose import make_tiny_overrides
from tests.support.datasets import get_stream, load_dataset_config, load_values

TABLE = "height,width,kind\n" + "".join(f"{i},{2 * i + 0.5},{'ab'[i % 2]}\n" for i in range(40))


def load(name: str, file: Path, **values: Any) -> Dataset:
    """Return a data set of a file."""
    return load_values(load_dataset_config(name, file=str(file), **values))


def write(folder: Path, text: str, name: str = "table.csv") -> Path:
    """Write a text file."""
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table_has_columns_labels_and_a_balanced_split(separator: str, tmp_path: Path) -> None:
    file = write(tmp_path, TABLE.replace(",", separator))
    dataset = load("table", file, label="kind", standardize=False)
    assert dataset.class_names == ("a", "b")
    assert dataset.spec.shapes == {"point": (2,), "label": ()}
    points, labels = get_stream(dataset.train, "point"), get_stream(dataset.train, "label")
    assert len(points) == 36
    assert torch.equal(points[:, 1], 2 * points[:, 0] + 0.5)
    assert torch.equal(labels, points[:, 0].long() % 2)
    assert get_stream(dataset.test, "label").bincount().tolist() == [2, 2]
    heights = torch.cat([get_stream(split, "point")[:, 0] for split in (dataset.train, dataset.test)])
    assert sorted(heights.tolist()) == list(range(40))


def test_columns_are_standardized_over_the_training_split(tmp_path: Path) -> None:
    constant = TABLE.replace("kind", "third").replace(",a\n", ",7\n").replace(",b\n", ",7\n")
    points = get_stream(load("table", write(tmp_path, constant)).train, "point")
    torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(points.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))


def test_columns_are_chosen_by_name_or_number(tmp_path: Path) -> None:
    dataset = load("table", write(tmp_path, TABLE), columns=["width"], standardize=False)
    assert dataset.spec.shapes == {"point": (1,)}
    numbers = write(tmp_path, TABLE.partition("\n")[2].replace(",a", ",0").replace(",b", ",1"), "numbers.csv")
    dataset = load("table", numbers, columns=["0", "1"], label="2", standardize=False)
    assert dataset.class_names == ("0", "1")
    assert dataset.spec.shapes["point"] == (2,)


def test_arrays_of_numpy_are_tables(tmp_path: Path) -> None:
    values = np.arange(60.0).reshape(20, 3)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", x=values, kind=np.arange(20) % 2)
    assert load("table", tmp_path / "a.npy").spec.shapes == {"point": (3,)}
    dataset = load("table", tmp_path / "b.npz", label="kind", columns=["x.0", "x.2"], standardize=False)
    points = get_stream(dataset.train, "point")
    assert torch.equal(points[:, 1], points[:, 0] + 2)
    assert dataset.class_names == ("0", "1")


@pytest.mark.parametrize("layout", ["gray", "first", "last", "float"])
def test_images_have_channels_first_as_uint8(layout: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 9), dtype=np.uint8)
    images: Any = {
        "gray": pixels[:, 0],
        "first": pixels,
        "last": pixels.transpose(0, 2, 3, 1),
        "float": (pixels / 255).astype(np.float32),
    }[layout]
    np.savez(tmp_path / "images.npz", image=images, label=[f"c{i % 4}" for i in range(20)])
    dataset = load("arrays", tmp_path / "images.npz", label="label")
    stream = get_stream(dataset.train, "image")
    assert stream.dtype == torch.uint8
    assert stream.shape == (18, 1 if layout == "gray" else 3, 8, 9)
    assert dataset.class_names == ("c0", "c1", "c2", "c3")
    images_found = [image for split in (dataset.train, dataset.test) for image in get_stream(split, "image")]
    expected = pixels[:, :1] if layout == "gray" else pixels
    assert {image.numpy().tobytes() for image in images_found} == {image.tobytes() for image in expected}


def test_test_arrays_are_the_test_split(tmp_path: Path) -> None:
    images = np.zeros((10, 4, 4), np.uint8)
    arrays: dict[str, Any] = {
        "image": images,
        "label": np.arange(10) % 2,
        "test_image": images[:3] + 1,
        "test_label": [0, 1, 1],
    }
    np.savez(tmp_path / "images.npz", **arrays)
    dataset = load("arrays", tmp_path / "images.npz", label="label")
    assert (len(dataset.train), len(dataset.test)) == (10, 3)
    assert get_stream(dataset.test, "image").unique().tolist() == [1]
    np.save(tmp_path / "images.npy", images)
    assert load("arrays", tmp_path / "images.npy").spec.shapes == {"image": (1, 4, 4)}


@pytest.fixture(scope="module")
def vae_on_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the VAE on a table of two correlated columns."""
    folder = tmp_path_factory.mktemp("table")
    settings = ("model.network=dense", "model.pixels=gray", "model.likelihood=gaussian", "model.latent=1")
    result = run_on_table(folder, "vae", *settings, "optimizer.lr=0.01", "trainer.epochs=60")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def run_on_table(folder: Path, model: str, *overrides: str) -> CommandResult:
    """Run a technique on a table of two correlated columns."""
    arguments = [word for word in make_tiny_overrides(model) if "dataset.limit" not in word]
    source = ("dataset=table", f"dataset.file={write(folder, TABLE)}", "dataset.label=kind")
    return run_genexp(*arguments, *source, *overrides, format_run_dir_override(folder / "run"))


def test_the_vae_learns_a_table_and_its_run_is_evaluated(vae_on_table: Path) -> None:
    status = load_status(vae_on_table)
    assert status["test"]["mse"] < 0.1  # of columns with variance 1
    assert {"negative_elbo", "kl", "active_units"} <= status["test"].keys()
    assert not {"psnr", "ssim"} & status["test"].keys()
    result = run_main(
        "genexp-evaluate", evaluate_main, str(vae_on_table), "--device", "cpu", "--nll-samples", "20"
    )
    assert result.exit_code == 0, result.stderr
    assert "nll_20_points" in result.stdout
    assert "points, scaled as in training" in result.stdout
    assert "gray" not in result.stdout
    assert not result.stderr


def sample(run_dir: Path, *arguments: str) -> CommandResult:
    """Run genexp-sample in this process."""
    return run_main("genexp-sample", sample_main, str(run_dir), "--device", "cpu", *arguments)


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the names and the values (rows, columns) of a CSV file."""
    names = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    return names, np.loadtxt(path, delimiter=",", skiprows=1)


def test_new_rows_of_a_table_have_its_columns_and_units(vae_on_table: Path, tmp_path: Path) -> None:
    result = sample(vae_on_table, "samples", "--count", "250", "--output", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    names, rows = read_csv(tmp_path / "samples.csv")
    assert names == ["height", "width"]
    assert rows.shape == (250, 2)
    assert np.abs(rows.mean(0) - [19.5, 39.5]).max() < 6  # TABLE has 0 … 39 and 0.5 … 78.5
    assert np.corrcoef(rows.T)[0, 1] > 0.9
    assert not np.allclose(rows[:, 1], 2 * rows[:, 0] + 0.5, atol=1e-3)  # draws, not expected values
    assert sample(vae_on_table, "samples", "--count", "3", "--output", str(tmp_path)).exit_code == 0
    assert np.array_equal(read_csv(tmp_path / "samples.csv")[1], rows[:3])


def test_reconstructed_rows_are_beside_those_of_the_test_split(vae_on_table: Path, tmp_path: Path) -> None:
    result = sample(vae_on_table, "--output", str(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"samples.csv", "reconstructions.csv"}
    names, rows = read_csv(tmp_path / "reconstructions.csv")
    assert names == ["index", "height", "width", "reconstructed_height", "reconstructed_width"]
    assert rows[:, 0].tolist() == [0, 1, 2, 3]
    assert np.allclose(rows[:, 2], 2 * rows[:, 1] + 0.5)
    assert np.abs(rows[:, 3] - rows[:, 1]).max() < 8


def test_model_card_has_the_scale_of_each_column(vae_on_table: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    arguments = (str(vae_on_table), "--format", "safetensors", "--output", str(tmp_path))
    assert run_main("genexp-export", export_main, *arguments).exit_code == 0
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    columns = load("table", vae_on_table.parent / "table.csv", label="kind").columns
    assert columns is not None
    offset, scale = columns.offset.tolist(), columns.scale.tolist()
    assert f"| width | (value - {offset[1]:.9g}) / {scale[1]:.9g} |" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["traversal"], "traversal: for images only, and dataset=table has points. Use one of: samples, rec"),
        (["--video"], "--video: for images only"),
        (["reconstructions", "--input", "FILE"], "--input: for images only"),
    ],
)
def test_outputs_that_need_images_are_one_line(arguments: list[str], message: str, vae_on_table: Path) -> None:
    words = [str(vae_on_table / "config.yaml") if word == "FILE" else word for word in arguments]
    assert message in get_error_line(sample(vae_on_table, *words), "genexp-sample")


@pytest.mark.parametrize("model", ["stacked_autoencoder", "denoising_autoencoder", "latent3d_autoencoder"])
def test_dense_autoencoders_learn_tables(model: str, tmp_path: Path) -> None:
    overrides = ("model.loss=mse", "model.widths=[16,1]", "optimizer.lr=0.01", "trainer.epochs=60")
    result = run_on_table(tmp_path, model, *overrides)
    assert result.exit_code == 0, result.stderr
    test = load_status(tmp_path / "run")["test"]
    assert test["clean_mse" if model == "denoising_autoencoder" else "mse"] < 0.2
    assert not [name for name in test if "psnr" in name]
    assert sample(tmp_path / "run").exit_code == 0
    names, rows = read_csv(tmp_path / "run" / "made" / "reconstructions.csv")
    assert len(rows) == 4
    assert ("noisy_height" in names) == (model == "denoising_autoencoder")


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("vae", (), "not for the points of dataset=table. Use model.network=dense model.pixels=gray"),
        ("stacked_autoencoder", ("model.loss=bce",), "model.loss=bce: takes images in [0, 1], and dataset=table"),
        ("conv_autoencoder", (), "dataset=table: has no image stream"),
    ],
)
def test_what_needs_images_says_so(model: str, overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in get_error_line(run_on_table(tmp_path, model, *overrides), "genexp")


def test_parquet_files_are_tables(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"x": [0.5, 1.5, 2.5, 4.0], "y": [1, 2, 3, 5], "kind": ["a", "b", "a", "b"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    dataset = load("table", tmp_path / "x.parquet", label="kind", standardize=False, test_fraction=0.5)
    assert dataset.class_names == ("a", "b")
    points = torch.cat([get_stream(split, "point") for split in (dataset.train, dataset.test)])
    assert sorted(points.tolist()) == [[0.5, 1], [1.5, 2], [2.5, 3], [4, 5]]
    parquet.write_table(pyarrow.table({"x": [1.0, None, 2.0]}), tmp_path / "none.parquet")
    parquet.write_table(pyarrow.table({"x": pyarrow.array([], "double")}), tmp_path / "empty.parquet")
    (tmp_path / "damaged.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    for name, message in (
        ("none", "None in column x, row 2 is not a finite number"),
        ("empty", "no rows"),
        ("damaged", "not readable as Parquet"),
    ):
        with pytest.raises(DataError, match=message) as excinfo:
            load("table", tmp_path / f"{name}.parquet")
        assert "\n" not in str(excinfo.value)


def test_missing_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"require pyarrow. Run `pip install 'genexp\[parquet\]'`"):
        load("table", tmp_path / "x.parquet")


def test_runs_train_on_both(tmp_path: Path) -> None:
    table = write(tmp_path, TABLE)
    overrides = (
        "model=kmeans",
        "dataset=table",
        f"dataset.file={table}",
        "dataset.label=kind",
        "model.clusters=2",
    )
    result = run_genexp(*overrides, "device=cpu", format_run_dir_override(tmp_path / "kmeans"))
    assert result.exit_code == 0, result.stderr
    assert "acc" in load_status(tmp_path / "kmeans")["test"]
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((60, 16, 16)))
    source = ("dataset=arrays", f"dataset.file={tmp_path / 'images.npy'}", "trainer.max_steps=2")
    arguments = (*make_tiny_overrides("vae"), *source, format_run_dir_override(tmp_path / "vae"))
    result = run_genexp(*arguments)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("", {}, "no rows"),
        ("a,b\n1,2\n3\n", {}, "row 2 has 1 values, not 2"),
        ("a,b\n1,2\n3,x\n", {}, "'x' in column b, row 2 is not a finite number"),
        ("a,b\n1,2\n3,\n", {}, "'' in column b, row 2"),
        ("a,b\n1,nan\n3,4\n", {}, "'nan' in column b, row 1"),
        ("a,a\n1,2\n3,4\n", {}, "two columns have one name"),
        ("a,b\n1,2\n", {}, "table.csv: must have at least 2 rows, not 1"),
        (TABLE, {"label": "knid"}, "no column knid"),
        (TABLE, {"columns": ["heigth"]}, "no column heigth"),
        ("a,b\n1,\udcff\n", {}, "not readable as CSV"),
    ],
)
def test_damaged_tables_are_one_line(text: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as excinfo:
        load("table", file, **values)
    assert message in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


@pytest.mark.parametrize("name", ["table", "arrays"])
@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04", b"\x93NUMPY"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_arrays_are_one_line(name: str, content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not a readable NumPy file"):
        load(name, file)


@pytest.mark.parametrize(
    ("arrays", "values", "message"),
    [
        ({"image": np.zeros((5, 4, 4), np.uint8), "label": [1, 2]}, {"label": "label"}, "5 images and 2 labels"),
        ({"picture": np.zeros((5, 4, 4))}, {}, "dataset.image=image: no such array"),
        ({"image": np.full((5, 4, 4), 7.0)}, {}, "numbers in [0, 1]"),
        (
            {"image": np.zeros(5)},
            {},
            "x.npz: the array image of the train split: must be (samples, height, width)",
        ),
        ({"image": np.zeros((1, 4, 4))}, {}, "x.npz: must have at least 2 rows, not 1"),
        ({"image": np.array([{}] * 5)}, {}, "not a readable NumPy file"),  # pickled objects
    ],
)
def test_wrong_images_are_one_line(
    arrays: dict[str, Any], values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError) as excinfo:
        load("arrays", tmp_path / "x.npz", **values)
    assert message in str(excinfo.value)


@pytest.mark.parametrize("name", ["table", "arrays"])
def test_missing_files_and_wrong_keys_are_one_line(name: str, tmp_path: Path) -> None:
    model = "kmeans" if name == "table" else "vae"
    for overrides, message in (
        ((), "dataset.file=null: must be a file"),
        (("dataset.file=x.txt",), "dataset.file=x.txt: must end in "),
        (("dataset.file=absent.npy",), "dataset.file=absent.npy: not a file"),
        (("dataset.file=x.npy", "dataset.test_fraction=1"), "dataset.test_fraction=1.0: must be between 0 and 1"),
    ):
        arguments = (f"model={model}", f"dataset={name}", *overrides, format_run_dir_override(tmp_path / "run"))
        assert message in get_error_line(run_genexp(*arguments), "genexp")


def test_columns_named_twice_and_labels_that_a_file_lacks_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.columns=\['height', 'height'\]: must name columns, each once"):
        load("table", write(tmp_path, TABLE), columns=["height", "height"])
    np.save(tmp_path / "x.npy", np.zeros((5, 4, 4)))
    with pytest.raises(DataError, match=r"dataset.label=kind: a .npy file has images only"):
        load("arrays", tmp_path / "x.npy", label="kind")
    np.save(tmp_path / "x.npy", np.zeros((5, 4, 4)))
    with pytest.raises(DataError, match="the array has 3 axes"):
        load("table", tmp_path / "x.npy")


def test_missing_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genexp.device._allowed_bytes", 100)
    with pytest.raises(ConfigError, match="needs at least"):
        load("table", write(tmp_path, TABLE))
