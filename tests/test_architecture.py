"""Structure of the package: import direction, forbidden imports, unique names, size limits."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import genexp

PACKAGE = Path(genexp.__file__).parent
TESTS = Path(__file__).parent
# From top to bottom. A unit (a folder or a module of the package's root) imports only units further down.
LAYERS = (
    "plugins",
    "api",
    "train",
    "ensemble",
    "sweep",
    "cli",
    "runs",
    "reports",
    "recorders",
    "training",
    "techniques",
    "metrics",
    "kmeans",
    "distributed",
    "capabilities",
    "snapshot",
    "technique",
    "run_dir",
    "data",
    "networks",
    "losses",
    "images",
    "device",
    "registry",
    "config",
    "errors",
    "seeding",
    "sharding",
)

# Units further down that a unit must not import nevertheless.
RUN_UNITS = {"training", "run_dir", "snapshot", "device", "seeding", "distributed"}
FORBIDDEN = {
    "networks": {"config", "data", "technique", *RUN_UNITS},  # a network receives numbers
    "losses": {"config", "data", "technique", *RUN_UNITS},
    "metrics": RUN_UNITS,
    "techniques": RUN_UNITS - {"device"},
    "recorders": {"config", "data", "networks", "metrics", "losses", "training", "seeding"},
    "training": {"data", "networks", "metrics", "losses", "run_dir", "capabilities"},
    "data": {"run_dir"},
    "reports": {"data", "networks", "metrics", "losses", "technique", "techniques", *RUN_UNITS - {"run_dir"}},
}
# Units that may import a library. Extras are imported inside functions, as the time of `--help` shows.
LIBRARY_USERS = {
    "hydra": {"api", "train", "cli", "sweep", "plugins"},
    "torchvision": {"images"},
    "tensorboardX": {"recorders"},
    "joblib": {"plugins"},
    "submitit": {"plugins", "sweep"},
    "optuna": {"sweep"},
    "ray": {"plugins"},
    "h5py": {"networks"},
    "torch_fidelity": {"networks", "metrics"},
    "wandb": {"recorders"},
    "mlflow": {"recorders"},
}

# Folders that grow by one file for each technique, network, loss, data set, plugin or optional recorder.
GROWING_FOLDERS = {"techniques", "networks", "losses", "sources", "plugins", "optional"}
MAX_ROOT_MODULES, MAX_MODULES, MAX_SHORT_MODULES, SHORT_LINES = 10, 125, 10, 40


@cache
def parse_modules() -> dict[str, ast.Module]:
    """Return dotted name → syntax tree of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def find_imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that is imported anywhere in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "use absolute imports"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_unit(module: str) -> str | None:
    """Return the unit that a module of the package belongs to, None for other modules."""
    first, *rest = module.split(".")
    return rest[0] if first == "genexp" and rest else None


@cache
def find_unit_imports() -> dict[str, set[str]]:
    """Return unit → the other units that it imports."""
    found: dict[str, set[str]] = {}
    for name, tree in parse_modules().items():
        unit = find_unit(name)
        if unit is not None:
            others = {other for other in map(find_unit, find_imported_names(tree)) if other not in (None, unit)}
            found.setdefault(unit, set()).update(other for other in others if other is not None)
    return found


def test_every_unit_is_listed_in_layers() -> None:
    assert find_unit_imports().keys() == set(LAYERS), "add a new unit to LAYERS"


@pytest.mark.parametrize("unit", LAYERS)
def test_a_unit_imports_only_units_further_down(unit: str) -> None:
    allowed = set(LAYERS[LAYERS.index(unit) + 1 :])
    assert find_unit_imports()[unit] - allowed == set()


@pytest.mark.parametrize("unit", sorted(FORBIDDEN))
def test_unit_has_no_forbidden_imports(unit: str) -> None:
    assert find_unit_imports()[unit] & FORBIDDEN[unit] == set()


def test_only_the_units_that_assemble_runs_import_both_trainer_and_recorders() -> None:
    both = {unit for unit, others in find_unit_imports().items() if {"training", "recorders"} <= others}
    assert "runs" in both
    assert both <= {"runs", "sweep", "cli"}


def test_steps_and_recorders_do_not_import_the_loop() -> None:
    """Other units import the trainer's settings and signals; only the execution of a run imports the loop."""
    users = {
        name
        for name, tree in parse_modules().items()
        if "genexp.training.trainer.train" in find_imported_names(tree)
    }
    assert users == {"genexp.runs.run"}


def test_no_module_imports_a_technique_by_its_name() -> None:
    """Techniques are found by their file names, so that adding one edits no list."""
    for name, tree in parse_modules().items():
        for other in find_imported_names(tree):
            if other.startswith("genexp.techniques."):
                assert name.startswith("genexp.techniques."), f"{name} imports {other}"
                assert other.split(".")[2].startswith("_"), f"{name} imports {other}: move what they share"


@pytest.mark.parametrize("library", sorted(LIBRARY_USERS))
def test_a_library_is_imported_only_by_its_users(library: str) -> None:
    users = {
        find_unit(name)
        for name, tree in parse_modules().items()
        if any(other.split(".")[0] == library for other in find_imported_names(tree))
    }
    assert users
    assert users <= LIBRARY_USERS[library]


def test_recorders_networks_losses_and_the_loop_receive_no_omegaconf_configuration() -> None:
    loop = {"genexp.training.trainer", "genexp.training.learner", "genexp.training.cuda_graphs"}
    for name, tree in parse_modules().items():
        if find_unit(name) in ("networks", "recorders", "losses") or name in loop:
            assert not {other for other in find_imported_names(tree) if other.split(".")[0] == "omegaconf"}, name


def test_there_is_no_import_cycle() -> None:
    edges = {
        name: {other for other in find_imported_names(tree) if other in parse_modules()} - {name}
        for name, tree in parse_modules().items()
    }
    # Importing a module also imports its package. This import is not counted as a dependency.
    for name, others in edges.items():
        edges[name] = {other for other in others if not name.startswith(f"{other}.")}
    visited: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in visited:
            for other in edges[name]:
                visit(other, (*path, name))
            visited.add(name)

    for name in edges:
        visit(name, ())


def test_no_class_name_occurs_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for name, tree in parse_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_module_has_the_name_of_a_sibling_folder() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not path.with_suffix("").is_dir(), path


def test_no_call_unpacks_a_literal_list_of_arguments() -> None:
    for name, tree in parse_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                spelled_out = [
                    argument
                    for argument in node.args
                    if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple | ast.List)
                ]
                assert not spelled_out, f"{name}:{node.lineno}: pass the arguments themselves"


def test_no_test_module_imports_another() -> None:
    """Shared helpers are in tests/support."""
    for path in TESTS.rglob("*.py"):
        for name in find_imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            assert not re.match(r"(tests\.(?!support)|test_)", name), f"{path} imports {name}"


def test_tests_mirror_the_package() -> None:
    """Each folder of tests has the name of a unit of the package, except scripts/ and support/."""
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= {*LAYERS, "scripts", "support"}


def test_numbers_of_modules_are_limited() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert len([path for path in paths if path.parent == PACKAGE]) <= MAX_ROOT_MODULES
    counted = [path for path in paths if not GROWING_FOLDERS & set(path.relative_to(PACKAGE).parts)]
    assert len(counted) <= MAX_MODULES
    short = [path for path in counted if len(path.read_text(encoding="utf-8").splitlines()) < SHORT_LINES]
    assert len(short) <= MAX_SHORT_MODULES, short
