"""Help page of `genexp --help`. Hydra's own help takes three times as long, at times over a second."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from string import Template

import yaml

from genexp.cli.plugins import GROUPS, parse_plugins, use_plugins
from genexp.config import CONFIG_GROUPS, find_config_dir
from genexp.registry import list_plugin_names

LINE_WIDTH = 100  # columns
TEMPLATE_PATH = Path("hydra", "help", "genexp.yaml")  # below conf/; Hydra reads the same file


def build_help_page(arguments: Sequence[str]) -> str | None:
    """Return the help page, or None if `arguments` do not contain `--help`.

    `--config-dir` and plugins add their choices. Raises PluginError.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    options, _ = parser.parse_known_args(arguments)
    if not options.help:
        return None
    use_plugins(parse_plugins(arguments))
    config_dirs = [config_dir for config_dir in (find_config_dir(), options.config_dir) if config_dir is not None]
    choices = [_format_group(group, _list_choices(group, config_dirs)) for group in CONFIG_GROUPS]
    template = yaml.safe_load((find_config_dir() / TEMPLATE_PATH).read_text(encoding="utf-8"))["template"]
    return Template(template).substitute(APP_CONFIG_GROUPS="".join(choices))


def _format_group(group: str, choices: Sequence[str]) -> str:
    text = f"  {group + ':':<12}{', '.join(choices)}"
    return textwrap.fill(text, LINE_WIDTH, subsequent_indent=" " * 14) + "\n"


def _list_choices(group: str, config_dirs: Sequence[Path]) -> list[str]:
    names = {path.stem for config_dir in config_dirs for path in (config_dir / group).glob("*.yaml")}
    return sorted({*names, *(list_plugin_names(GROUPS[group]) if group in GROUPS else ())})
