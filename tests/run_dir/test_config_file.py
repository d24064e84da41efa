"""A run's config.yaml as data: plain values, bounded, without links."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from genexp.errors import CheckpointError
from genexp.run_dir.config_file import (
    CONFIG_KEYS,
    MAX_BYTES,
    check_run_config,
    read_hydra_config,
    read_run_config,
    read_yaml_file,
)
from tests.support.compose import compose_values
from tests.support.run_dirs import RUN_CONFIG, make_run_dir

BILLION_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghij"
)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    """Return the path of a YAML file that a test writes."""
    return tmp_path / "file.yaml"


def get_read_error(path: Path) -> str:
    """Read a file that must be refused, and return the message, which must be one line with the path."""
    with pytest.raises(CheckpointError) as error:
        read_yaml_file(path)
    (line,) = str(error.value).splitlines()
    assert str(path) in line
    return line


def test_config_keys_are_the_top_level_keys_of_a_composed_configuration() -> None:
    assert set(CONFIG_KEYS) == compose_values().keys() - {"sweep"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: !!python/object/apply:os.system ['touch boom']", "not plain YAML (line 1: a tag)"),
        ("a: 1\nb: !!str 1", "not plain YAML (line 2: a tag)"),
        ("a: &anchor 1\nb: *anchor", "not plain YAML (line 1: an anchor or alias)"),
        (BILLION_LAUGHS, "an anchor or alias"),
        ("{a: " * 50_000 + "}" * 50_000, "levels"),
        ("[" * 100_000 + "]" * 100_000, ""),
        ("a: 1\na: 2", "not plain YAML (line 2: a key that is repeated"),
        ("1: 2", "not a string"),
        ("a: [", "not plain YAML"),
        ("a: 1\n---\nb: 2", "not plain YAML"),
        ("a: " + "9" * 5000, "not plain YAML"),
        ("a: \x00", "not plain YAML"),
        ("a" * (MAX_BYTES + 1), f"more than {MAX_BYTES:,} bytes"),
    ],
)
def test_anything_but_plain_bounded_yaml_is_refused(text: str, reason: str, yaml_file: Path) -> None:
    yaml_file.write_text(text)
    assert reason in get_read_error(yaml_file)


def test_bytes_that_are_not_utf8_are_refused(yaml_file: Path) -> None:
    yaml_file.write_bytes(b"a: \xff\xfe")
    assert "not plain YAML" in get_read_error(yaml_file)


def test_links_and_named_pipes_are_refused_without_waiting(yaml_file: Path, tmp_path: Path) -> None:
    (tmp_path / "target.yaml").write_text("a: 1")
    yaml_file.symlink_to("target.yaml")
    assert "not readable" in get_read_error(yaml_file)
    yaml_file.unlink()
    os.mkfifo(yaml_file)
    assert "not a regular file" in get_read_error(yaml_file)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1e-3\nb: 1_000.5\nc: .5\nd: -.inf\ne: 1e5\nf: 12e03\ng: 1.\nh: .e5\ni: 1_e5",
        "a: 2026-01-01\nb: yes\nc: 'yes'\nd: null\ne: ~\nf: ''\ng: 0x10\nh: NaN\ni: '1e3'",
        "a: [1, [2, {b: c}]]\nd: {e: {f: [null]}}",
    ],
)
def test_values_are_those_that_omegaconf_reads(text: str, yaml_file: Path) -> None:
    yaml_file.write_text(text)
    assert repr(read_yaml_file(yaml_file)) == repr(OmegaConf.to_container(OmegaConf.load(yaml_file)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"hydra": {"callbacks": {"x": {"_target_": "torch.load"}}}}, "unknown key hydra"),
        ({"defaults": [{"override hydra/launcher": "x"}]}, "unknown key defaults"),
        (
            {"model": {**RUN_CONFIG["model"], "_target_": "torch.load"}},
            "model._target_ has a special meaning in Hydra",
        ),
        ({"model": {**RUN_CONFIG["model"], "x": [{"_target_": "y"}]}}, "model.x._target_ has a special meaning"),
        ({"notes": "${oc.env:HOME}"}, "notes contains an interpolation"),
        ({"tags": ["a", "${oc.env:HOME}"]}, "tags contains an interpolation"),
        ({"dataset": {"name": "mnist", "${seed}": 1}}, "contains an interpolation"),
        ({"trainer": 3}, "trainer is not a mapping"),
    ],
)
def test_only_the_keys_of_a_run_are_accepted(content: dict, reason: str, tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path / "run")
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**RUN_CONFIG, **content}))
    with pytest.raises(CheckpointError, match=r"config\.yaml: ") as error:
        read_run_config(run_dir)
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "text", "null"])
def test_a_file_that_is_not_a_mapping_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="not the configuration of a run"):
        read_run_config(tmp_path)


def test_every_composed_configuration_is_accepted(tmp_path: Path) -> None:
    values = {
        key: value for key, value in compose_values("model=dcgan", "dataset=edges").items() if key != "sweep"
    }
    check_run_config(values)
    OmegaConf.save(OmegaConf.create(values), tmp_path / "config.yaml")
    assert read_run_config(tmp_path) == values


def test_a_folder_without_a_configuration_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run directory \(no config.yaml\)"):
        read_run_config(tmp_path)


def test_configuration_of_a_run_that_failed_early_is_read_with_its_references_only(tmp_path: Path) -> None:
    run_dir = make_run_dir(tmp_path / "run")
    shutil.move(run_dir / "config.yaml", tmp_path)
    (run_dir / ".hydra").mkdir()
    config = {
        **RUN_CONFIG,
        "model": {"name": "vae", "recipe": {"lr": 0.1, "betas": [0.5, 0.9], "loop": "${model.recipe.loop}"}},
        "optimizer": {
            "lr": "${model.recipe.lr}",
            "betas": "${oc.select:model.recipe.betas,null}",
            "eps": "${oc.select:model.recipe.eps,0.1}",
            "all": "${model}",
            "loop": "${model.recipe.loop}",
        },
        "notes": "${oc.env:HOME}",
        "sweep": {"resume": None},
    }
    (run_dir / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    content = read_hydra_config(run_dir)
    assert content["optimizer"] == {
        "lr": 0.1,
        "betas": [0.5, 0.9],
        "eps": 0.1,
        "all": None,
        "loop": "${model.recipe.loop}",
    }
    assert content["notes"] == "${oc.env:HOME}"
    assert "sweep" not in content
