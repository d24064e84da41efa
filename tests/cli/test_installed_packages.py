"""Members of an installed package: entry points, defaults of its dataclasses, YAML files, and errors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from genexp.data.registry import DATASETS
from genexp.losses import LOSSES
from genexp.registry import Registry
from genexp.technique import TECHNIQUES
from tests.support.command import (
    TINY_RUN_OVERRIDES,
    format_run_dir_override,
    get_error_line,
    load_status,
    run_genexp,
)

ENTRY_POINTS = """
[genexp.techniques]
packaged = my_package_of_genexp.members
described = my_package_of_genexp.members
gone = my_package_of_genexp.members

[genexp.datasets]
packaged_data = my_package_of_genexp.members

[genexp.losses.reconstruction]
packaged_loss = my_package_of_genexp.members
"""
SOURCE = """
from dataclasses import dataclass
from typing import Any
import torch, genexp
from genexp.losses import LOSSES

@genexp.register_loss("packaged_loss", kind="reconstruction")
def packaged_loss(logits, target):
    return (logits.sigmoid() - target).abs().mean()

@genexp.register_dataset("packaged_data")
@dataclass
class Data:
    count: int = 30
    def load(self):
        images = torch.rand(2, self.count, 6, 6, generator=torch.Generator().manual_seed(0))
        return genexp.Dataset.from_arrays({"image": images[0]}, {"image": images[1]})

@genexp.register_technique("packaged")
@genexp.register_technique("described")
class Packaged(genexp.Technique):
    @dataclass
    class Config:
        size: int = 2
    def __init__(self, config, spec):
        super().__init__()
        self.bias = torch.nn.Linear(1, config.size)
        self.image = torch.nn.Parameter(torch.zeros(spec.image_shape))
        self.reconstruction_loss = LOSSES["reconstruction"].find("packaged_loss")
    def phases(self):
        return (genexp.GradientPhase("phase", self, self.loss),)
    def loss(self, batch, clock):
        return self.reconstruction_loss(self.image.expand_as(batch["image"]), batch["image"]), {}
    def evaluate(self, batches):
        return {"loss": float(torch.stack([self.loss(batch, None)[0] for batch in batches]).mean())}
"""


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package in a directory on the search path."""
    package, information = tmp_path / "my_package_of_genexp", tmp_path / "my_package_of_genexp-1.0.dist-info"
    (package / "conf" / "model").mkdir(parents=True)
    information.mkdir()
    (package / "__init__.py").touch()
    (package / "members.py").write_text(SOURCE)
    (package / "conf" / "model" / "described.yaml").write_text("# From a file.\nname: described\nsize: 5\n")
    (information / "METADATA").write_text("Name: my_package_of_genexp\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    for registry in Registry.all:  # built-in members that a test imported stay
        registry._members = {
            name: member for name, member in registry._members.items() if not _is_of_package(member.value)
        }
    for name in [name for name in sys.modules if name.startswith("my_package_of_genexp")]:
        del sys.modules[name]


def _is_of_package(value: object) -> bool:
    return str(getattr(value, "__module__", "")).startswith("my_package_of_genexp")


def test_names_are_listed_without_importing_the_package() -> None:
    page = run_genexp("--help").stdout
    assert "packaged" in page
    assert "packaged_data" in page
    assert "described" in page
    assert "my_package_of_genexp" not in sys.modules
    assert {"packaged", "described"} <= set(TECHNIQUES.list_names())
    assert "packaged_data" in DATASETS.list_names()
    assert "packaged_loss" in LOSSES["reconstruction"].list_names()


def test_defaults_come_from_the_dataclass_or_from_the_yaml_of_the_package() -> None:
    for name, size in (("packaged", 2), ("described", 5)):
        result = run_genexp(f"model={name}", "--cfg", "job")
        assert yaml.safe_load(result.stdout)["model"] == {"name": name, "size": size}, result.stderr


def test_members_of_a_package_train_and_need_no_option(tmp_path: Path) -> None:
    overrides = ("dataset=packaged_data", "trainer.batch_size=10", "trainer.max_steps=2", *TINY_RUN_OVERRIDES)
    run_dir = tmp_path / "run"
    result = run_genexp("model=described", *overrides, format_run_dir_override(run_dir))
    assert result.exit_code == 0, result.stderr
    assert load_status(run_dir)["state"] == "finished"
    assert not (run_dir / "plugins.json").exists()
    assert run_genexp(f"resume={run_dir}", "trainer.max_steps=3").exit_code == 0
    loss = ("model=stacked_autoencoder", "model.loss=packaged_loss", "model.widths=[4]")
    result = run_genexp(*loss, *overrides, format_run_dir_override(tmp_path / "loss"))
    assert result.exit_code == 0, result.stderr


def test_entry_point_without_its_member_is_one_line() -> None:
    assert "gone" in get_error_line(run_genexp("model=gone"), "genexp")
