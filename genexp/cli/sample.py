"""`genexp-sample RUN [WHAT]`: what a finished run's technique can make, as files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from genexp.cli.common import CommandParser, add_run_options, build_int_type, format_exception, run_command
from genexp.config import suggest_choice
from genexp.errors import ConfigError, GenexpError
from genexp.run_dir.paths import format_path

if TYPE_CHECKING:
    from genexp.technique import Technique

PROGRAM = "genexp-sample"
OUTPUT_TYPE_HELP = {
    "samples": "new images, each a PNG, and a picture of them",
    "reconstructions": "images beside what comes back of them",
    "interpolation": "images that turn into each other, PNG and GIF",
    "traversal": "single latent units that move, PNG and GIF",
    "clusters": "CSV of index, cluster and label of the test split",
    "stylized": "the stylized image at full quality",
    "translations": "images of one kind made of another, each a PNG, and a picture of before and after",
}


def main() -> NoReturn:
    """Make what the command line asks for."""
    run_command(PROGRAM, lambda: _run(sys.argv[1:]))


def _build_parser() -> argparse.ArgumentParser:
    choices = "\n".join(f"  {name:16} {description}" for name, description in OUTPUT_TYPE_HELP.items())
    parser = CommandParser(
        PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make what the technique of a finished run can make. WHAT is one of these; without it, all\n"
        f"that the technique can.\n\n{choices}",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("what", nargs="?", metavar="WHAT", help="what to make")
    parser.add_argument("--count", type=build_int_type(1), metavar="N", help="how many (default: what suits)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/made")
    parser.add_argument("--seed", type=build_int_type(0), default=0, metavar="S", help="default: %(default)s")
    parser.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="a picture, or a folder of them, to make something of; without it, samples of the test split",
    )
    add_run_options(parser)
    return parser


def _run(arguments: Sequence[str]) -> int:
    args = _build_parser().parse_args(arguments)
    if args.what is not None and args.what not in OUTPUT_TYPE_HELP:
        raise ConfigError(
            f"{args.what} is nothing that can be made; {suggest_choice(args.what, OUTPUT_TYPE_HELP)}"
        )

    from genexp.cli.generate import OUTPUT_TYPES, GenerationRequest
    from genexp.cli.input_images import find_input_images
    from genexp.runs.load import get_technique_class, load_run, read_config  # torch: only now

    config = read_config(args.run)
    output_types = _select_output_types(get_technique_class(config), args.what, has_input=args.input is not None)
    if args.input is not None:
        find_input_images(args.input)  # before the run is opened: a wrong path need not wait
    run = load_run(args.run, config, checkpoint_name=args.checkpoint, device=args.device)
    request = GenerationRequest(run, args.output or args.run / "made", args.seed, args.count, args.input)
    exit_code = 0
    for name in output_types:
        try:
            for path in OUTPUT_TYPES[name].generate(request):
                print(format_path(path))
        except GenexpError as error:
            if len(output_types) == 1:
                raise
            print(f"{PROGRAM}: {name}: {format_exception(error)}", file=sys.stderr)
            exit_code = 1
    return exit_code


def _select_output_types(technique: type[Technique], output_type: str | None, *, has_input: bool) -> list[str]:
    """Return what to make. Raises ConfigError for what the technique cannot, or not of the user's images."""
    from genexp.cli.generate import OUTPUT_TYPES, list_output_types

    supported = list_output_types(technique)
    if not supported:
        raise ConfigError(f"model={technique.name} makes nothing of its own; see the figures of its run")
    if output_type is not None and output_type not in supported:
        raise ConfigError(
            f"{output_type}: model={technique.name} cannot make that; it can make: {', '.join(supported)}"
        )
    selectable = [name for name in supported if OUTPUT_TYPES[name].can_use_input] if has_input else supported
    if output_type is None and selectable:
        return selectable
    if output_type in selectable:
        return [output_type]
    raise ConfigError(f"{output_type or technique.name}: nothing of that is made from images; leave out --input")


if __name__ == "__main__":
    main()
