"""One-line error messages for exceptions of Hydra, OmegaConf, YAML and the operating system."""

from __future__ import annotations

import errno
import re

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from genexp.config import CONFIG_GROUPS, find_config_dir, suggest_choice

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def format_error(error: Exception, arguments: list[str]) -> str:
    """Return `error` as one line. `arguments` are the command line without the program name."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: unknown name. {suggest_choice(choice, error.options)}"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        remedy = "Free disk space, or use" if error.errno in DISK_FULL_ERRNOS else "Use"
        path = error.filename or "output directory"
        return f"{path}: {error.strerror or error}. {remedy} another hydra.run.dir."
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem}). Correct the file."
    ambiguous = re.search(r"Ambiguous value for argument '(.+?)'", str(error))
    if ambiguous:
        return f"{ambiguous[1]}: several values for one run. Add -m to run each, or put a list in [ ]."
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r}: not a valid override. Use key=value, and quote a value with special characters."
        )
    unmergeable = re.search(r"Error merging override \+*([^=]+)=(.*)", str(error))
    if unmergeable:
        key, value = unmergeable.groups()
        return f"{key}={value.strip()}: wrong type. Use {key}.NAME=VALUE for one of its keys."
    unknown_key = re.search(r"Could not override '([^']+)'", str(error))
    if unknown_key:
        key = unknown_key[1].partition("@")[0]
        if any(argument.startswith("resume=") for argument in arguments):
            return f"{key}: not a key in the config.yaml of the run. Remove it, or start a new run."
        return f"{key}: unknown key. {suggest_choice(key, _list_known_keys(arguments))}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {_get_first_line(error)}. See genexp --cfg job."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"{_get_first_line(error)}. See genexp --help."
    return _get_first_line(error)


def _get_first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), repr(error))


def _list_known_keys(arguments: list[str]) -> list[str]:
    """Return all dotted keys of the configuration composed from the group choices in `arguments`."""
    from genexp.run_dir.record import flatten_config  # slow to import

    choices = [argument for argument in arguments if argument.partition("=")[0] in CONFIG_GROUPS]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
            composed = OmegaConf.to_container(compose("train", overrides=choices))
    except (HydraException, OmegaConfBaseException):
        return list(CONFIG_GROUPS)
    assert isinstance(composed, dict)
    return [*CONFIG_GROUPS, *(key for key, _ in flatten_config(composed))]
