"""Registry and plugins: names, origins, options, import, replacement and errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genexp.config import FieldError
from genexp.data.registry import DATASETS
from genexp.errors import ConfigError, PluginError
from genexp.losses import LOSSES, register_loss
from genexp.registry import (
    Registry,
    get_plugins,
    list_plugin_names,
    load_plugins,
    read_plugin_variable,
    set_plugins,
)
from genexp.technique import TECHNIQUES, register_technique
from tests.support.plugins import write_example_plugin, write_plugin

TECHNIQUE = """
@genexp.register_technique("{name}")
class Mine(genexp.Technique):
    @dataclass
    class Config:
        {field}
    def phases(self):
        return ()
"""


@pytest.fixture(autouse=True)
def _remove_plugins() -> Iterator[None]:
    yield
    set_plugins([])


def load(*paths: Path | str) -> None:
    """Use plugins and import them."""
    set_plugins([str(path) for path in paths])
    load_plugins()


def test_names_are_found_without_importing_the_file(tmp_path: Path) -> None:
    path = write_example_plugin(tmp_path)
    path.write_text(path.read_text() + "\nraise SystemExit(3)\n")
    set_plugins([str(path)])
    assert list_plugin_names("genexp.techniques") == ["my_autoencoder"]
    assert list_plugin_names("genexp.datasets") == ["spirals"]
    assert "my_autoencoder" in TECHNIQUES.list_names()
    assert "spirals" in DATASETS.list_names()


def test_an_unknown_name_imports_the_plugins(tmp_path: Path) -> None:
    set_plugins([str(write_example_plugin(tmp_path))])
    assert TECHNIQUES.find("my_autoencoder").name == "my_autoencoder"
    assert LOSSES["reconstruction"].find("huber").__name__ == "huber"


def test_members_of_replaced_plugins_are_forgotten(tmp_path: Path) -> None:
    load(write_example_plugin(tmp_path))
    (plugin,) = get_plugins()
    assert plugin.module_name in sys.modules
    set_plugins([])
    assert plugin.module_name not in sys.modules
    with pytest.raises(ConfigError, match=r"model\.name=my_autoencoder: unknown technique"):
        TECHNIQUES.find("my_autoencoder")


def test_a_changed_file_is_imported_again(tmp_path: Path) -> None:
    for factor in (2, 3):
        path = write_plugin(
            tmp_path,
            f"@genexp.register_loss('times', kind='content')\ndef times(x, y):\n    return {factor} * x\n",
        )
        load(path)
        assert LOSSES["content"].find("times")(1, 0) == factor


def test_a_module_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    write_plugin(tmp_path / "my_package", TECHNIQUE.format(name="mine", field="x: int = 1"), "ideas")
    load("my_package.ideas")
    assert TECHNIQUES.find("mine").__module__ == "my_package.ideas"


def test_a_plugin_imports_modules_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helper_of_my_plugin.py").write_text("FACTOR = 7\n")
    source = (
        "from helper_of_my_plugin import FACTOR\n@genexp.register_loss('a', kind='content')\ndef a(x, y): ...\n"
    )
    load(write_plugin(tmp_path, source))
    assert sys.path[-1] == str(tmp_path)  # at the end: it hides no other module


def test_variable_names_several_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENEXP_PLUGINS", "a.py::b")
    assert read_plugin_variable() == ["a.py", "b"]


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        (
            "@genexp.register_loss\ndef f(a, b): ...",
            3,
            "kind='': unknown kind of loss. Use one of",
        ),
        ("@genexp.register_loss('f', kind='rekon')\ndef f(a, b): ...", 3, "kind='rekon': unknown kind of loss"),
        ("@genexp.register_loss('f g', kind='content')\ndef f(a, b): ...", 3, "the content loss has no name"),
        ("@genexp.register_technique\nclass Mine(genexp.Technique): ...", 3, "the technique has no name"),
        ("@genexp.register_technique('a')\nclass Mine: ...", 3, "model=a: not a technique"),
        ("@genexp.register_technique('a')\nclass Mine(genexp.Technique): ...", 3, "model=a: no dataclass Config"),
        (TECHNIQUE.format(name="vae", field="x: int = 1"), 4, "the technique vae exists already"),
        (2 * TECHNIQUE.format(name="a", field="x: int = 1"), 12, "the technique a exists already"),
        (TECHNIQUE.format(name="a", field="x: int"), 4, "model=a: the field x has no default"),
        (
            "@genexp.register_loss('mse', kind='reconstruction')\ndef f(a, b): ...",
            3,
            "the reconstruction loss mse exists already",
        ),
        ("@genexp.register_dataset('a')\nclass A: ...", 3, "dataset=a: not a dataclass with a method load"),
        ("@genexp.register_dataset('moons')\n@dataclass\nclass A:\n    def load(self): ...", 3, "moons"),
        (
            "@genexp.register_dataset('a')\n@dataclass\nclass A:\n    n: int\n    def load(self): ...",
            3,
            "n has no",
        ),
        ("\nimport absent_module", 4, "ModuleNotFoundError: No module named 'absent_module'"),
        ("def f(:\n    pass", 3, "SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", 3, "SystemExit: 0"),
        ("genexp.register_layer", 3, "AttributeError: module 'genexp' has no attribute 'register_layer'"),
    ],
)
def test_mistakes_are_named_with_file_and_line(source: str, line: int, message: str, tmp_path: Path) -> None:
    path = write_plugin(tmp_path, source)
    with pytest.raises(PluginError) as excinfo:
        load(path)
    text = str(excinfo.value)
    assert text.startswith(f"{path}:{line}: ")
    assert message in text
    assert "\n" not in text
    assert [registry for registry in Registry.all if "a" in registry._members] == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.py", "--plugin absent.py: No such file or directory"),
        ("absent_module", "--plugin absent_module: not found"),
        (".", "--plugin .: "),
        ("/dev/zero", "--plugin /dev/zero: not a file"),
        ("os.path.absent", "not found"),
        ("sys", "not found"),
    ],
)
def test_missing_plugins_are_errors(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(PluginError, match=r"^--plugin") as excinfo:
        set_plugins([source])
    assert message in str(excinfo.value)


def test_two_plugins_of_one_name_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [write_plugin(folder, "") for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(PluginError, match="two plugins are named plugin"):
        set_plugins([str(path) for path in paths])
    set_plugins([str(paths[0]), str(paths[0])])
    assert len(get_plugins()) == 1


def test_a_failed_import_leaves_no_members(tmp_path: Path) -> None:
    path = write_example_plugin(tmp_path)
    path.write_text(path.read_text() + "\n1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        load(path)
    assert "huber" not in LOSSES["reconstruction"].list_names()


def test_a_file_that_changes_during_the_start_is_an_error(tmp_path: Path) -> None:
    path = write_example_plugin(tmp_path)
    set_plugins([str(path)])
    path.write_text("")
    with pytest.raises(PluginError, match="the file changed"):
        load_plugins()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"delta": "x"}, "('loss_options.delta', 'x', 'must be a value such as 1.0')"),
        ({"delta": True}, "('loss_options.delta', True, 'must be a value such as 1.0')"),
        ({"dleta": 1.0}, "('loss_options.dleta', 1.0, 'unknown option. Did you mean delta?')"),
        ({"logits": 1.0}, "('loss_options.logits', 1.0, 'unknown option. Use one of: delta.')"),
    ],
)
def test_options_are_checked_against_the_signature(options: dict, error: str, tmp_path: Path) -> None:
    load(write_example_plugin(tmp_path))
    losses = LOSSES["reconstruction"]
    with pytest.raises(FieldError) as excinfo:
        losses.check("loss", "huber", options)
    assert str(excinfo.value) == error
    losses.check("loss", "huber", {"delta": 2})
    assert losses.find("huber", {"delta": 2}) is losses.find("huber", {"delta": 2})


def test_a_loss_without_options_has_none() -> None:
    with pytest.raises(FieldError, match="it takes no options"):
        LOSSES["reconstruction"].check("loss", "mse", {"delta": 1.0})


def test_definitions_outside_of_plugins_can_be_repeated() -> None:
    """A cell of a notebook that runs again replaces what it registered."""
    for _ in range(2):
        register_loss("of_a_notebook", kind="content")(test_definitions_outside_of_plugins_can_be_repeated)
    with pytest.raises(PluginError, match="the content loss of_a_notebook exists already"):
        register_loss("of_a_notebook", kind="content")(load)
    LOSSES["content"]._members.pop("of_a_notebook")


def test_registering_no_class_is_an_error() -> None:
    with pytest.raises(PluginError, match="not a technique"):
        register_technique("a")(3)  # type: ignore[arg-type]
