"""Help pages of `genexp --help` and `genexp --version`.

Hydra's own help takes three times as long (scripts/README.md, "Libraries").
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import yaml

import genexp
from genexp.cli.plugins import GROUPS, list_package_config_dirs, parse_plugins, use_plugins
from genexp.config import CONFIG_GROUPS, find_config_dir, scale_epochs, suggest_choice
from genexp.errors import ConfigError
from genexp.registry import list_plugin_names
from genexp.run_dir.paths import CONFIG_FILE, MANIFEST_FILE

LINE_WIDTH = 80  # columns, as in a new terminal window
KEY_WIDTH = 32  # columns of `key=value`, before its comment
TEMPLATE_PATH = Path("hydra", "help", "genexp.yaml")  # below conf/; Hydra reads the same file
KEY_PATTERN = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: +(?P<value>[^#\s].*?))?(?: +#\s*(?P<comment>.*))?")
COMMENT_PATTERN = re.compile(r"(?P<indent> *)#\s*(?P<comment>.*)")
DESCRIPTION_PATTERN = re.compile(r"(?:# @package.*\n)?# (?!@package)(.*)")
RECIPE_PATTERN = re.compile(r"""["']?\$\{oc\.select:model\.recipe\.([\w.]+),([^}]*)\}["']?""")

BASE_PATTERN = re.compile(r"^defaults:\n  - (\w+)$", re.MULTILINE)
SCALE_PATTERN = re.compile(r"\$\{scale_epochs:([\d.]+),(\d+)\}")


# Keys whose values are directories of runs or sweeps, and the file that each of them contains.
DIR_KEYS = {"resume": CONFIG_FILE, "trainer.init_from": CONFIG_FILE, "sweep.resume": MANIFEST_FILE}


@dataclass
class KeyHelp:
    """A key of a YAML file with the comment that explains it."""

    key: str
    value: str
    comment: str


def build_help_page(arguments: Sequence[str]) -> str | None:
    """Return the help page or the versions, or None if `arguments` ask for neither.

    The page lists the choices of all groups. If `arguments` choose something, such as `model=vae`, it lists the
    keys of that choice. `--config-dir` and plugins add their choices. Raises ConfigError for an unknown choice,
    PluginError.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    options, rest = parser.parse_known_args(arguments)
    if options.version:
        return f"genexp {genexp.__version__} (torch {version('torch')}, hydra-core {version('hydra-core')})"
    if not options.help:
        return None
    use_plugins(parse_plugins(arguments))
    own_dirs = [] if options.config_dir is None else [options.config_dir]
    config_dirs = [*own_dirs, find_config_dir(), *list_package_config_dirs()]
    pairs = (argument.split("=", 1) for argument in rest if "=" in argument)
    chosen = {group: choice for group, choice in pairs if group in CONFIG_GROUPS}
    if chosen:
        return "\n\n".join(_format_choice(group, choice, chosen, config_dirs) for group, choice in chosen.items())
    choices = [_format_group(group, _list_choices(group, config_dirs)) for group in CONFIG_GROUPS]
    template = yaml.safe_load((find_config_dir() / TEMPLATE_PATH).read_text(encoding="utf-8"))["template"]
    return Template(template).substitute(APP_CONFIG_GROUPS="".join(choices))


def _format_group(group: str, choices: Sequence[str]) -> str:
    text = f"  {group + ':':<12}{', '.join(choices)}"
    return textwrap.fill(text, LINE_WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False) + "\n"


def _list_choices(group: str, config_dirs: Sequence[Path]) -> list[str]:
    names = {path.stem for config_dir in config_dirs for path in (config_dir / group).glob("*.yaml")}
    return sorted({*names, *(list_plugin_names(GROUPS[group]) if group in GROUPS else ())})


def _format_choice(group: str, choice: str, chosen: Mapping[str, str], config_dirs: Sequence[Path]) -> str:
    """Return the description and the keys of `group=choice`, with the values that `chosen["model"]` recommends."""
    text = _read_choice(group, choice, config_dirs)
    if group == "experiment":
        return text.rstrip()
    recipe = _read_recipe(chosen.get("model", "vae"), config_dirs)
    lines = [f"{group}={choice}"]
    if description := DESCRIPTION_PATTERN.match(text):
        lines.append(textwrap.fill(description[1], LINE_WIDTH))
    entries = {entry.key: entry for entry in _iter_keys(text, group)}
    if base := BASE_PATTERN.search(text):  # the file has only the keys in which it differs from another choice
        for entry in _iter_keys(_read_choice(group, base[1], config_dirs), group):
            own = entries.pop(entry.key, entry)
            entries[entry.key] = KeyHelp(entry.key, own.value, own.comment or entry.comment)
    for entry in entries.values():
        label = f"  {group}.{entry.key}={_replace_recipe_values(entry.value, recipe)}"
        if len(label) >= KEY_WIDTH and entry.comment:
            lines.append(label)
            label = ""
        lines.append(
            textwrap.fill(
                f"{label:<{KEY_WIDTH}}{entry.comment}".rstrip(),
                LINE_WIDTH,
                subsequent_indent=" " * KEY_WIDTH,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    if group == "model" and recipe:
        values = ", ".join(f"{key} {'null' if value is None else value}" for key, value in recipe.items())
        lines.append(textwrap.fill(f"Defaults of this model for the other groups: {values}.", LINE_WIDTH))
    return "\n".join(lines)


def _read_choice(group: str, choice: str, config_dirs: Sequence[Path]) -> str:
    for config_dir in config_dirs:
        paths = {path.stem: path for path in (config_dir / group).glob("*.yaml")}
        if choice in paths:
            return paths[choice].read_text(encoding="utf-8")
    if choice in _list_choices(group, config_dirs):
        return f"# A plugin. Its keys are those of its Config: genexp --cfg job {group}={choice}"
    hint = suggest_choice(choice, _list_choices(group, config_dirs))
    raise ConfigError(f"{group}={choice}: unknown. {hint[0].upper()}{hint[1:]}")


def _read_recipe(model: str, config_dirs: Sequence[Path]) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(_read_choice("model", model, config_dirs)) or {}
    return content.get("model", content).get("recipe") or {}


def _replace_recipe_values(value: str, recipe: Mapping[str, Any]) -> str:
    """Return `value` with the model's recommendations, or else the defaults, instead of interpolations of them."""

    def find_value(match: re.Match[str]) -> str:
        recommended: Any = recipe
        for part in match[1].split("."):
            if not isinstance(recommended, dict) or part not in recommended:
                return match[2]
            recommended = recommended[part]
        return "null" if recommended is None else str(recommended)

    text = re.sub(r"\s", "", RECIPE_PATTERN.sub(find_value, value))
    return SCALE_PATTERN.sub(lambda match: str(scale_epochs(float(match[1]), int(match[2]))), text)


def _iter_keys(text: str, group: str) -> Iterator[KeyHelp]:
    """Yield the keys of a YAML file of `group` but for its name, its recipe and the keys below a key.

    A comment belongs to the key of its line, or of the line before if it is indented deeper, or else of the line
    after.
    """
    lines = text.splitlines()
    is_nested = f"{group}:" in lines
    indent = 2 if is_nested else 0
    lines = lines[lines.index(f"{group}:") + 1 :] if is_nested else lines
    pending: list[KeyHelp] = []
    leading: list[str] = []
    for line in lines[0 if is_nested else text.startswith("#") :]:
        if is_nested and re.match(r"\w", line):
            break  # the keys of another group, for which a file with `# @package _global_` may set values
        if match := COMMENT_PATTERN.fullmatch(line):
            if len(match["indent"]) > indent and pending:
                pending[-1].comment = f"{pending[-1].comment} {match['comment']}".strip()
            else:
                leading.append(match["comment"])
        elif (match := KEY_PATTERN.fullmatch(line)) and len(match["indent"]) == indent:
            comment = " ".join([*leading, match["comment"] or ""]).strip()
            pending.append(KeyHelp(match["key"], match["value"] or "", comment))
            leading = []
    yield from (entry for entry in pending if entry.key not in ("name", "recipe", "defaults"))


def list_completions(line: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return the words that complete the last one of `line`: options, and directories of runs for `DIR_KEYS`.

    Other words, for which the list is empty, are left to Hydra.
    """
    word = "" if line[-1:].isspace() else (line.split() or [""])[-1]
    if word.startswith("-"):
        return sorted(option for option in parser._option_string_actions if option.startswith(word))
    key, separator, value = word.partition("=")
    if not separator or key not in DIR_KEYS:
        return []
    parent = Path(value[: value.rfind("/") + 1] or ".")
    prefix = f"{key}={value[: value.rfind('/') + 1]}"
    names = sorted(path for path in parent.glob("*/") if not path.name.startswith(".")) if parent.is_dir() else []
    matching = [path for path in names if f"{prefix}{path.name}".startswith(word) and path.is_dir()]
    return [f"{prefix}{path.name}{'' if (path / DIR_KEYS[key]).is_file() else '/'}" for path in matching]
