"""Imports point one way: the plan of the house, held against the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import genexp

PACKAGE = Path(genexp.__file__).parent
# From the ground up. A room may use those on storeys below its own, and itself.
STOREYS = (
    {"dropout", "eager", "errors", "paths", "precision", "seeding", "stopping", "vision", "whole_batch"},
    {"config", "checkpoint"},
    {"data", "device", "cli_errors", "help"},
    {"technique", "environment"},
    {"snapshot", "optimizers", "processes"},
    {
        "abilities",
        "adversarial_losses",
        "augmentation",
        "capture",
        "clustering",
        "losses",
        "networks",
        "pictures",
        "resampling",
    }
    | {"scatter"},
    {"latent_walks", "learner", "metrics"},
    {"techniques", "trainer", "recorders"},
    {"resume", "comparison"},
    {"build"},
    {"run"},
    {"sweep"},
    {"vectorized"},
    {"plugins"},
    {"benchmark", "tools", "train"},
)
FLOOR = {room: floor for floor, rooms in enumerate(STOREYS) for room in rooms}

# What is below a room and yet none of its business.
TRAINING = {
    "trainer",
    "learner",
    "optimizers",
    "checkpoint",
    "snapshot",
    "stopping",
    "device",
    "environment",
    "seeding",
    "processes",
}
STRANGERS = {
    "networks": {"config", "data", "technique", *TRAINING},  # numbers, never a configuration
    "losses": {"config", "data", "technique", *TRAINING},
    "metrics": TRAINING,
    "techniques": {*TRAINING, "cli_errors", "vision"},
    "recorders": {
        "config",
        "data",
        "networks",
        "metrics",
        "losses",
        "learner",
        "optimizers",
        "seeding",
        "stopping",
    },
    "trainer": {"data", "networks", "metrics", "losses", "checkpoint", "abilities", "paths", "cli_errors"},
    "learner": {"data", "networks", "metrics", "losses", "checkpoint", "abilities", "paths", "cli_errors"},
    "data": {"checkpoint"},
    "comparison": {"data", "networks", "metrics", "losses", "technique", "techniques", *TRAINING},  # files alone
}
# Who may use a library that has its one place.
LIBRARIES = {
    "hydra": {"train", "cli_errors", "benchmark", "sweep", "plugins"},
    "torchvision": {"vision"},
    "tensorboardX": {"recorders"},
    "plotly": {"recorders", "comparison"},
    # Extras, and slow to import: inside of functions only, which the time of `--help` shows.
    "joblib": {"benchmark", "plugins"},
    "submitit": {"plugins", "sweep"},
    "optuna": {"sweep"},
    "ray": {"plugins"},
}


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the package: dotted name → its code."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(code: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that is imported anywhere in the code."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports have full names"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """Return the room of a module of ours."""
    first, *rest = module.split(".")
    return rest[0] if first == "genexp" and rest else None


@cache
def uses() -> dict[str, set[str]]:
    """Return room → the other rooms that it imports from."""
    found: dict[str, set[str]] = {}
    for name, code in modules().items():
        here = room(name)
        if here is not None:
            there = {other for other in map(room, imported(code)) if other not in (None, here, "__version__")}
            found.setdefault(here, set()).update(other for other in there if other is not None)
    return found


def test_every_room_has_its_storey() -> None:
    assert uses().keys() == FLOOR.keys(), "say in STOREYS where a new room belongs"


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_a_room_uses_rooms_below_it_only(name: str) -> None:
    assert {other for other in uses()[name] if FLOOR[other] >= FLOOR[name]} == set()


@pytest.mark.parametrize("name", sorted(STRANGERS))
def test_a_room_keeps_to_its_business(name: str) -> None:
    assert uses()[name] & STRANGERS[name] == set()


def test_only_what_assembles_a_run_knows_both_who_learns_and_who_writes() -> None:
    both = {name for name, others in uses().items() if {"trainer", "recorders"} <= others}
    assert "run" in both
    assert both <= {"run", "benchmark", "tools"}


def test_nothing_imports_a_technique_by_its_name() -> None:
    """They are found by the names of their files, so that adding one edits no list."""
    for name, code in modules().items():
        for other in imported(code):
            if other.startswith("genexp.techniques."):
                assert name.startswith("genexp.techniques."), f"{name} imports {other}"
                assert other.split(".")[2].startswith("_"), f"{name} imports {other}: move what they share"


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_library_is_used_in_its_place_only(library: str) -> None:
    users = {
        room(name)
        for name, code in modules().items()
        if any(other.split(".")[0] == library for other in imported(code))
    }
    assert users
    assert users <= LIBRARIES[library]


def test_recorders_and_networks_know_nothing_of_configurations() -> None:
    for name, code in modules().items():
        if room(name) in ("networks", "recorders", "losses", "trainer", "learner"):
            assert not {other for other in imported(code) if other.split(".")[0] == "omegaconf"}, name


def test_no_module_imports_itself_in_a_circle() -> None:
    edges = {
        name: {other for other in imported(code) if other in modules()} - {name}
        for name, code in modules().items()
    }
    # A package is imported along with its modules, but they are not its users.
    for name, others in edges.items():
        edges[name] = {other for other in others if not name.startswith(f"{other}.")}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in edges[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())
