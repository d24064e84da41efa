"""Checks of the directories that a command line names, before Hydra reads or writes them.

A configuration directory from others may choose values for a run, and a launcher or sweeper with plain settings.
It may not name code: no `_target_`, no callbacks, logging or environment of Hydra, no commands of a launcher.
A new run or sweep starts only in a directory that holds nothing that it would write.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from genexp.cli.common import format_first_line, format_unexpected_error
from genexp.config import CONFIG_GROUPS, find_config_dir
from genexp.errors import CheckpointError, ConfigError, GenexpError
from genexp.run_dir.config_file import CONFIG_KEYS, SPECIAL_KEY_PATTERN, iter_nodes, read_yaml_file
from genexp.run_dir.files import check_no_links
from genexp.run_dir.paths import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    HYDRA_DIR,
    LOCK_FILE,
    LOG_FILE,
    MANIFEST_FILE,
    PRE_MANIFEST_FILES,
    STATUS_FILE,
    TEMPORARY_SUFFIX,
    format_path,
    is_run_name,
    is_sweep_name,
)

TRUST_FLAG = "--trust-config-dir"
RESUMED_CONFIG_PREFIX = "resume-"  # of the name of a resumed run's primary configuration
# Key → the files that a start has written if it ended before its first result, and a test that genexp wrote them.
EARLY_FILES: Mapping[str, tuple[Set[str], Callable[[Path], bool]]] = {
    "hydra.run.dir": (
        {HYDRA_DIR, LOG_FILE, LOCK_FILE, STATUS_FILE},
        lambda directory: (directory / HYDRA_DIR / "hydra.yaml").is_file(),
    ),
    "hydra.sweep.dir": (PRE_MANIFEST_FILES, lambda directory: _is_empty_file(directory / LOCK_FILE)),
}
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
# Settings of launchers and sweepers whose text is passed on as one word. Other texts may be commands or addresses.
WORD_SETTINGS = ("name", "direction", "partition", "account", "qos", "constraint")
_MODIFIER_PATTERN = re.compile(r"^(?:(?:override|optional)\s+)+")  # before a group in a defaults list
_OPTION_PATTERN = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*")  # also of a group; no step to a parent folder
_INTERPOLATION_PATTERN = re.compile(r"\$\{(?:now:[^${}]*|hydra:[\w.]+|(?:oc\.select:)?[\w.]+(?:,[^${}]*)?)\}")
_PARAMETER_PATTERN = re.compile(
    rf"\+{{0,2}}(?:{'|'.join(key for key in CONFIG_KEYS if key != 'resume')})(?:\.\w+)*"
)


def check_group_choices(overrides: Sequence[str]) -> None:
    """Raise ConfigError if an override has no key, or if a config group is set to something other than a name."""
    parser = OverridesParser.create()
    for text in overrides:
        key, separator, _ = text.partition("=")
        group = key.lstrip("+~").partition("@")[0]
        if separator and not group:
            raise ConfigError(f"{text}: has no key. Use key=value.")
        if not separator or not (group in CONFIG_GROUPS or group.startswith("hydra/")):
            continue
        try:
            value = parser.parse_override(text).value()
        except HydraException:
            continue  # reported with the other overrides
        if value is None and group in CONFIG_GROUPS:
            raise ConfigError(f"{text}: must be a name. Remove it to use the default.")
        if isinstance(value, int | float | Mapping):
            raise ConfigError(f"{text}: must be a name. Use {group}.KEY=VALUE for a single key.")


def check_config_dirs(options: argparse.Namespace) -> None:
    """Check each directory that `--config-dir`, `--config-path` and `hydra.searchpath` name.

    `options` is the result of `parse_command_line`. Nothing is checked with `--trust-config-dir`.
    Raises ConfigError with the file and the key that is not allowed.
    """
    if options.trust_config_dir:
        return
    for directory in list_config_dirs(options):
        if not directory.is_dir():
            raise ConfigError(f"{directory}: configuration directory not found. Check its name.")
        if directory.resolve() == find_config_dir().resolve():
            continue
        for path in _list_config_files(directory):
            _check_file(path, path.relative_to(directory).parent.parts)


def list_config_dirs(options: argparse.Namespace) -> Iterator[Path]:
    """Yield the directories of `--config-dir`, `--config-path` and `hydra.searchpath`. Raises ConfigError."""
    if options.config_dir is not None:
        yield Path(options.config_dir)
    paths = [] if options.config_path is None else [options.config_path]
    for path in [*paths, *_parse_search_path(options.overrides)]:
        scheme, _, rest = path.rpartition("://")
        if scheme == "pkg":
            continue  # an installed package is trusted
        if scheme not in ("", "file") or not Path(rest).is_absolute():
            raise ConfigError(
                f"{path}: not an absolute path. Use --config-dir, or {TRUST_FLAG} for your own files."
            )
        yield Path(rest)


def _parse_search_path(overrides: Sequence[str]) -> list[str]:
    """Return the entries of all overrides of `hydra.searchpath`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser  # slow to import

    relevant = [override for override in overrides if "hydra.searchpath" in override]
    parsed = OverridesParser.create().parse_overrides(relevant) if relevant else []
    values = [override.value() for override in parsed if override.get_key_element() == "hydra.searchpath"]
    return [str(path) for value in values if isinstance(value, list) for path in value]


def _list_config_files(directory: Path) -> Iterator[Path]:
    """Yield the YAML files that can become part of a configuration: the primary ones and those of groups."""
    yield from sorted(directory.glob("*.yaml"))
    for group in (*CONFIG_GROUPS, "hydra"):
        if (directory / group).is_symlink():
            raise _build_error(directory / group, "a link")
        for parent, folders, files in os.walk(directory / group):
            for name in sorted((*folders, *files)):
                path = Path(parent, name)
                if path.is_symlink():
                    raise _build_error(path, "a link")
                if name in files and path.suffix == ".yaml":
                    yield path


def _check_file(path: Path, group: tuple[str, ...]) -> None:
    """Raise ConfigError where a file of the config group `group` (names of nested folders) is not plain."""
    is_hydra_group = group[:1] == ("hydra",)
    if is_hydra_group and "/".join(group[:2]) not in HYDRA_GROUPS:
        raise _build_error(path, f"a file of {'/'.join(group)}")
    try:
        content = read_yaml_file(path)
    except CheckpointError as error:
        raise ConfigError(f"{error} Or add {TRUST_FLAG} if the files are yours.") from None
    package = _read_package(path)
    # Under any other package, Hydra would move the file and those that it includes to other keys than those below.
    if package not in (None, "_group_", "_global_") or (is_hydra_group and package == "_global_"):
        raise _build_error(path, f"@package {package}")
    if content is None:
        return
    if not isinstance(content, dict):
        raise ConfigError(f"{format_path(path)}: not a mapping of keys to values. Restore the file.")
    for entry in content.pop("defaults", None) or ():
        if not _is_plain_default(entry, is_hydra_group=is_hydra_group):
            raise _build_error(path, f"defaults: {entry}")
    for keys, value in iter_nodes(content):
        _check_node(path, (() if package == "_global_" else group) + keys, value)


def _read_package(path: Path) -> str | None:
    """Return the value of Hydra's directive `# @package NAME`, read as Hydra does; None without one."""
    from hydra.plugins.config_source import ConfigSource  # slow to import

    with path.open(encoding="utf-8") as file:
        try:
            return ConfigSource._get_header_dict(file.read(512))["package"]
        except ValueError:
            raise _build_error(path, "its first line") from None


def _is_plain_default(entry: Any, *, is_hydra_group: bool) -> bool:
    """Return whether an entry of a defaults list only selects options of known groups.

    A file of a launcher or sweeper may include files of its own group only: Hydra places what it includes below
    its own key.
    """
    if isinstance(entry, str):  # `_self_`, or a file such as `train` or `/model/vae`
        group, separator, option = entry.rpartition("/")
        options, groups = [option], [group] if separator and group else []
        is_local = not separator
    elif isinstance(entry, Mapping):
        groups = [_MODIFIER_PATTERN.sub("", str(key)) for key in entry]
        options = [item for value in entry.values() for item in (value if isinstance(value, list) else [value])]
        is_local = all("/" not in group for group in groups)
    else:
        return False
    names = [group.removeprefix("/") for group in groups]
    is_known = all(name in HYDRA_GROUPS or name.partition("/")[0] in CONFIG_GROUPS for name in names)
    return (is_local if is_hydra_group else is_known) and all(
        item is None or _OPTION_PATTERN.fullmatch(str(item)) for item in (*names, *options)
    )


def _check_node(path: Path, keys: tuple[str, ...], value: Any) -> None:
    """Raise ConfigError where a key or value is not a plain setting of a run, a launcher or a sweeper."""
    key = ".".join(keys)
    if SPECIAL_KEY_PATTERN.fullmatch(keys[-1]):
        raise _build_error(path, key)
    if keys[0] == "hydra" and not _is_plain_hydra_setting(keys, value):
        raise _build_error(path, key)
    if keys[-1] == "resume" and keys[:-1] in ((), ("sweep",)) and value is not None:
        raise _build_error(path, key)  # names a directory
    if isinstance(value, str) and "${" in _INTERPOLATION_PATTERN.sub("", value):
        raise _build_error(path, f"{key}={value}")


def _is_plain_hydra_setting(keys: tuple[str, ...], value: Any) -> bool:
    """Return whether a value below `hydra` only selects options of a launcher or sweeper."""
    if "/".join(keys[:2]) not in HYDRA_GROUPS:
        return keys == ("hydra",) and isinstance(value, Mapping)
    is_nested = keys[1:3] in (("sweeper", "params"), ("sweeper", "sampler"))
    if isinstance(value, Mapping):
        return len(keys) == 2 or (is_nested and len(keys) == 3)
    is_parameter = is_nested and keys[2] == "params"
    if is_parameter and not _PARAMETER_PATTERN.fullmatch(".".join(keys[3:])):
        return value is None and len(keys) == 3
    if isinstance(value, str):
        return (is_parameter or keys[-1] in WORD_SETTINGS) and value.isprintable()
    return value is None or isinstance(value, bool | int | float)


class OutputDirCallback(Callback):
    """Hydra callback that ends the process if a new run or sweep would overwrite files of others.

    Hydra calls it before it writes a log or `.hydra/`. It would only warn about an exception.
    """

    def on_run_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Check `hydra.run.dir`."""
        if not str(config_name).startswith(RESUMED_CONFIG_PREFIX):
            _exit_on_error(lambda: _check_output_dir(config, "hydra.run.dir", is_run_name))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check `hydra.sweep.dir`."""
        if OmegaConf.select(config, "sweep.resume") is None:
            _exit_on_error(lambda: _check_output_dir(config, "hydra.sweep.dir", is_sweep_name))


def _exit_on_error(check: Callable[[], None]) -> None:
    try:
        check()
    except (GenexpError, OSError) as error:
        sys.exit(f"genexp: {format_first_line(error)}")
    except Exception as error:  # Hydra would only warn about it, and write over the files
        sys.exit(f"genexp: {format_unexpected_error(error)}")


def _check_output_dir(config: DictConfig, key: str, is_written: Callable[[str], bool]) -> None:
    """Raise ConfigError if the directory at `key` holds files with names that are written there.

    Print the directory if it is outside the working directory.
    """
    HydraConfig.instance().set_config(config)  # resolves ${hydra:...}
    directory = Path(str(OmegaConf.select(config, key))).resolve()
    paths = directory.iterdir() if directory.is_dir() else ()
    names = sorted(path.name for path in paths if is_written(path.name))
    if CONFIG_FILE in names and (CHECKPOINTS_DIR in names or HYDRA_DIR in names):
        raise ConfigError(
            f"{key}={directory}: already contains a run. Use resume={directory}, or another directory."
        )
    if MANIFEST_FILE in names:
        raise ConfigError(
            f"{key}={directory}: already contains a sweep. Use sweep.resume={directory}, or another directory."
        )
    early_names, is_from_genexp = EARLY_FILES[key]
    if all(name in early_names or name.endswith(TEMPORARY_SUFFIX) for name in names) and is_from_genexp(directory):
        check_no_links(directory, is_written)  # its files are replaced
    elif names:
        raise ConfigError(
            f"{key}={directory}: contains other files ({', '.join(names[:3])}). Use an empty directory."
        )
    if not directory.is_relative_to(Path.cwd()):
        print(f"output outside the working directory: {directory}")


def _is_empty_file(path: Path) -> bool:
    return path.is_file() and not path.stat().st_size


def _build_error(path: Path, subject: str) -> ConfigError:
    return ConfigError(
        f"{format_path(path)}: {subject} is not allowed in a configuration directory. Delete it, or add "
        f"{TRUST_FLAG} if the files are yours."
    )
