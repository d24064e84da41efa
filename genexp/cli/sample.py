"""`genexp-sample RUN [WHAT]`: what a finished run's technique can make, as files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from genexp.cli.common import Parser, add_run_options, at_least, in_one_line, run_command
from genexp.config import suggest_choice
from genexp.errors import ConfigError, GenexpError
from genexp.run_dir.paths import format_path

if TYPE_CHECKING:
    from genexp.technique import Technique

PROGRAM = "genexp-sample"
CHOICES = {
    "samples": "new images, each a PNG, and a picture of them",
    "reconstructions": "images beside what comes back of them",
    "interpolation": "images that turn into each other, PNG and GIF",
    "traversal": "single latent units that move, PNG and GIF",
    "clusters": "CSV of index, cluster and label of the test split",
    "stylised": "the stylised image at full quality",
    "translations": "images of one kind made of another, each a PNG, and a picture of before and after",
}


def main() -> NoReturn:
    """Make what the command line asks for."""
    run_command(PROGRAM, lambda: _work(sys.argv[1:]))


def _parser() -> argparse.ArgumentParser:
    choices = "\n".join(f"  {name:16} {meaning}" for name, meaning in CHOICES.items())
    parser = Parser(
        PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make what the technique of a finished run can make. WHAT is one of these; without it, all\n"
        f"that the technique can.\n\n{choices}",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("what", nargs="?", metavar="WHAT", help="what to make")
    parser.add_argument("--count", type=at_least(1), metavar="N", help="how many (default: what suits)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/made")
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="a picture, or a folder of them, to make something of; without it, samples of the test split",
    )
    add_run_options(parser)
    return parser


def _work(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    if given.what is not None and given.what not in CHOICES:
        raise ConfigError(f"{given.what} is nothing that can be made; {suggest_choice(given.what, CHOICES)}")

    from genexp.cli.generate import PRODUCTS, Order
    from genexp.cli.input_images import find_inputs
    from genexp.runs.load import open_run, read_config, technique_of  # torch: only now

    config = read_config(given.run)
    wanted = _wanted(technique_of(config), given.what, takes_input=given.input is not None)
    if given.input is not None:
        find_inputs(given.input)  # before the run is opened: a wrong path need not wait
    run = open_run(given.run, config, which=given.checkpoint, device=given.device)
    order = Order(run, given.output or given.run / "made", given.seed, given.count, given.input)
    failures = 0
    for name in wanted:
        try:
            for path in PRODUCTS[name].make(order):
                print(format_path(path))
        except GenexpError as error:
            if len(wanted) == 1:
                raise
            print(f"{PROGRAM}: {name}: {in_one_line(error)}", file=sys.stderr)
            failures = 1
    return failures


def _wanted(technique: type[Technique], what: str | None, *, takes_input: bool) -> list[str]:
    """Return what to make. Raises ConfigError for what the technique cannot, or not of the user's images."""
    from genexp.cli.generate import PRODUCTS, products_of

    possible = products_of(technique)
    if not possible:
        raise ConfigError(f"model={technique.name} makes nothing of its own; see the figures of its run")
    if what is not None and what not in possible:
        raise ConfigError(f"{what}: model={technique.name} cannot make that; it can make: {', '.join(possible)}")
    fitting = [name for name in possible if PRODUCTS[name].takes_input] if takes_input else possible
    if what is None and fitting:
        return fitting
    if what in fitting:
        return [what]
    raise ConfigError(f"{what or technique.name}: nothing of that is made from images; leave out --input")


if __name__ == "__main__":
    main()
