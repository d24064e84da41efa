"""Registries of techniques, losses, networks, data sets, metrics and recorders, and the plugins that add to them.

Code comes from this package, from the entry points of installed packages, and from plugins: files and modules
that the user names on the command line, in `$GENEXP_PLUGINS` or in Python. A configuration only names members.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar, cast

from genexp.config import FieldError, check_option, suggest_choice
from genexp.errors import ConfigError, PluginError, format_code_error

T = TypeVar("T")
PLUGINS_VARIABLE = "GENEXP_PLUGINS"  # files and modules, separated by os.pathsep
PLUGIN_MODULE_PREFIX = "genexp_plugin_"  # of module names: the stem of a plugin file may be that of a library


@dataclass(frozen=True)
class Plugin:
    """A Python file or module that the user named."""

    source: str  # absolute path of the file, or dotted name of the module
    name: str  # stem of the file, or dotted name of the module
    path: Path
    sha256: str  # of the file; for a package, of its __init__.py

    @property
    def module_name(self) -> str:
        """Name in `sys.modules`."""
        return self.source if self.source == self.name else PLUGIN_MODULE_PREFIX + self.name


class _Member(NamedTuple):
    value: Any
    plugin: Plugin | None  # plugin that registered the member


class Registry(Generic[T]):
    """Members of one kind by name. Members of installed packages and of this one are imported when first used."""

    all: list[Registry[Any]] = []  # noqa: RUF012

    def __init__(self, noun: str, *, key: str, group: str, source: str | None) -> None:
        """Create an empty registry.

        Messages name the kind of a member by `noun`, and the configuration key by `key`. `group` is the group of
        entry points. `source` is a package with one module per member, or one module that registers all built-in
        members, or None if there are no built-in members.
        """
        self.noun, self.key, self.group, self.source = noun, key, group, source
        self._members: dict[str, _Member] = {}
        self._partials: dict[str, Any] = {}
        Registry.all.append(self)

    def register(self, name: str, value: T) -> None:
        """Add a member. Raises PluginError if a member with this name exists, or `value` cannot be called."""
        if not callable(value):
            found = type(value).__name__
            raise PluginError(
                f"{find_caller()}: the {self.noun} {name} is of type {found}. Use a function or class."
            )
        member = _Member(value, _LOADING[-1] if _is_of_plugin(value) else None)
        previous = self._members.get(name)
        is_builtin = member.plugin is not None and name in self._list_modules()
        if is_builtin or (previous is not None and not _is_redefinition(previous, member)):
            raise PluginError(f"{find_caller()}: the {self.noun} {name} exists already. Use another name.")
        self._members[name] = member

    def check_name(self, name: str) -> None:
        """Raise PluginError unless `name` is an identifier. A decorator without parentheses passes a class."""
        if not (isinstance(name, str) and name.isidentifier()):
            raise PluginError(f"{find_caller()}: the {self.noun} has no name. Use letters, digits and _.")

    def find(self, name: str, options: Mapping[str, Any] | None = None) -> T:
        """Return a member, with its keyword `options` set. Raises ConfigError if `name` is unknown."""
        name = str(name)  # a configuration can contain any value
        if name not in self._members:
            self._import_member(str(name))
        if name not in self._members:
            names = self.list_names()
            remedy = suggest_choice(name, names) if names else "Use --plugin FILE with the plugin that defines it."
            raise ConfigError(f"{self.key}={name}: unknown {self.noun}. {remedy}")
        value: T = self._members[name].value
        if not options:
            return value
        # One object for each set of options. The runs of an ensemble then share the object.
        key = f"{name}({sorted(options.items())})"
        partial: T = self._partials.setdefault(key, functools.partial(cast(Any, value), **options))
        return partial

    def check(
        self, key: str, name: str, options: Mapping[str, Any] | None = None, options_key: str | None = None
    ) -> None:
        """Check the name of a member and its options. Raises FieldError.

        `key` and `options_key` are the configuration keys of both. `options_key` is `key`_options by default.
        """
        try:
            member = self.find(name)
        except PluginError:
            raise
        except ConfigError:
            raise FieldError(key, name, f"must be one of {', '.join(self.list_names())}") from None
        for option, value in (options or {}).items():
            check_option(cast(Any, member), options_key or f"{key}_options", str(option), value)

    def list_names(self) -> list[str]:
        """Return the sorted names of all members. A package's members and those of plugins are not imported."""
        external = (name for name, _ in self.list_external())
        return sorted({*self._list_modules(), *external, *list_plugin_names(self.group)})

    def list_external(self) -> list[tuple[str, T]]:
        """Return (name, member) of each imported member that this package does not define."""
        return [(name, member.value) for name, member in self._members.items() if not _is_own(member.value)]

    def remove_plugin(self, plugin: Plugin) -> None:
        """Remove the members that `plugin` registered."""
        self._members = {name: member for name, member in self._members.items() if member.plugin != plugin}
        self._partials.clear()

    def _list_modules(self) -> list[str]:
        """Return the names of the members of this package. Imports `source`, unless it is a package."""
        if self.source is None:
            return []
        module = importlib.import_module(self.source)
        if hasattr(module, "__path__"):
            names = (module.name for module in pkgutil.iter_modules(module.__path__))
            return [name for name in names if not name.startswith("_")]
        return [name for name, member in self._members.items() if member.plugin is None]

    def _import_member(self, name: str) -> None:
        if name in self._list_modules() and name not in self._members:
            importlib.import_module(f"{self.source}.{name}")
        for entry in (entry for entry in list_entry_points(self.group) if entry.name == name):
            entry.load()
        if name not in self._members:
            load_plugins()


def _is_redefinition(old: _Member, new: _Member) -> bool:
    """Return whether the same definition is registered again, as when a cell of a notebook runs again."""
    places = [(getattr(m.value, "__module__", ""), getattr(m.value, "__qualname__", "")) for m in (old, new)]
    return places[0] == places[1] and (new.plugin is None or old.plugin != new.plugin)


def _is_of_plugin(value: Any) -> bool:
    """Return whether the plugin that is being imported defines `value`, not a built-in module that it imports."""
    return bool(_LOADING) and not _is_own(value)


def _is_own(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("genexp.")


def check_defaults(owner: type, config_class: type, subject: str, ignored: Sequence[str] = ()) -> None:
    """Raise PluginError where a field of a dataclass has no default, if a plugin defines `owner`.

    A plugin has no YAML file that lists the values.
    """
    for field in dataclasses.fields(config_class) if _is_of_plugin(owner) else ():
        has_default = {field.default, field.default_factory} != {dataclasses.MISSING}
        if not has_default and field.name not in ignored:
            raise PluginError(f"{find_caller()}: {subject}: the field {field.name} has no default. Add one.")


def find_caller() -> str:
    """Return FILE:LINE of the innermost caller outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("genexp."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


_PLUGINS: list[Plugin] = []  # plugins that the user named
_LOADED: set[Plugin] = set()  # plugins that were imported
_LOADING: list[Plugin] = []  # plugins whose import has started but not ended; the last one is running


def set_plugins(sources: Sequence[str]) -> None:
    """Replace the plugins in use by the files or modules `sources`. Nothing is imported. Raises PluginError."""
    plugins = list(dict.fromkeys(map(_read_plugin, sources)))
    for old in [plugin for plugin in _PLUGINS if plugin not in plugins]:
        for registry in Registry.all:
            registry.remove_plugin(old)
        _LOADED.discard(old)
        sys.modules.pop(old.module_name, None)
    names = [plugin.name for plugin in plugins]
    for plugin in plugins:
        if names.count(plugin.name) > 1:
            raise PluginError(f"--plugin {plugin.source}: two plugins are named {plugin.name}. Rename a file.")
    _PLUGINS[:] = plugins


def read_plugin_variable() -> list[str]:
    """Return the files and modules in `$GENEXP_PLUGINS`."""
    return [source for source in os.environ.get(PLUGINS_VARIABLE, "").split(os.pathsep) if source]


def get_plugins() -> tuple[Plugin, ...]:
    """Return the plugins in use."""
    return tuple(_PLUGINS)


def list_plugin_sources() -> list[str]:
    """Return the plugins in use as arguments of `set_plugins` that are valid in any working directory."""
    return [plugin.source for plugin in _PLUGINS]


def load_plugins() -> None:
    """Import the plugins in use that are not imported yet. Raises PluginError with the file and the line."""
    for plugin in [plugin for plugin in _PLUGINS if plugin not in _LOADED]:
        _LOADED.add(plugin)
        _LOADING.append(plugin)
        try:
            _import_plugin(plugin)
        except BaseException as error:
            _LOADED.discard(plugin)
            for registry in Registry.all:
                registry.remove_plugin(plugin)
            if isinstance(error, PluginError | KeyboardInterrupt):
                raise
            raise PluginError(f"{format_code_error(error, plugin.path)}. Correct the file.") from error
        finally:
            _LOADING.pop()


def list_entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group in all installed packages."""
    return _read_entry_points(group, tuple(sys.path))


@functools.cache  # reading the metadata of every installed package is slow; `path` is part of the cache key
def _read_entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def list_plugin_names(group: str) -> list[str]:
    """Return the names of techniques or data sets of installed packages and plugins. Nothing is imported.

    `group` is that of the entry points. Raises PluginError for a plugin that is not valid Python.
    """
    names = {entry.name for entry in list_entry_points(group)}
    return sorted(names.union(*(_scan(plugin).get(group, ()) for plugin in _PLUGINS)))


@functools.cache
def _scan(plugin: Plugin) -> dict[str, list[str]]:
    """Return the names that `register_technique` and `register_dataset` receive in the source of a plugin."""
    try:
        tree = ast.parse(plugin.path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise PluginError(f"{format_code_error(error, plugin.path)}. Correct the file.") from None
    found: dict[str, list[str]] = {"genexp.techniques": [], "genexp.datasets": []}
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", ()):
            match decorator:
                case ast.Call(
                    func=ast.Attribute(attr=function) | ast.Name(id=function),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    found.get(f"genexp.{function.removeprefix('register_')}s", []).append(name)
    return found


def _read_plugin(source: str) -> Plugin:
    path = Path(source).expanduser()
    is_file = source.endswith(".py") or os.sep in source or path.is_file()
    if not is_file:
        path = _find_module_file(source)
    try:
        if path.exists() and not path.is_file():
            raise PluginError(f"--plugin {source}: not a file. Use a Python file or module.")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PluginError(f"--plugin {source}: {error.strerror}. Use a Python file or module.") from None
    path = path.resolve()
    return Plugin(str(path), path.stem, path, sha256) if is_file else Plugin(source, source, path, sha256)


def _find_module_file(name: str) -> Path:
    _append_to_search_path(Path.cwd())
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not str(spec.origin).endswith(".py"):
        raise PluginError(f"--plugin {name}: not found. Use a Python file or module.")
    return Path(str(spec.origin))


def _import_plugin(plugin: Plugin) -> None:
    if plugin.source == plugin.name:
        importlib.import_module(plugin.name)
        return
    content = plugin.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != plugin.sha256:
        raise PluginError(f"--plugin {plugin.path}: the file changed while it was read. Start the command again.")
    _append_to_search_path(plugin.path.parent)
    module = ModuleType(plugin.module_name)
    module.__file__ = str(plugin.path)
    sys.modules[plugin.module_name] = module  # dataclasses look up their module
    # Compiled here: a compiled file in __pycache__ could be that of an earlier version.
    exec(compile(content, str(plugin.path), "exec", dont_inherit=True), module.__dict__)


def _append_to_search_path(directory: Path) -> None:
    """Append `directory` to the module search path, where its modules cannot hide other modules."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
