"""Command `genexp-evaluate RUN...`: scores of finished runs on the test split, one column per run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from genexp.cli.common import (
    CommandParser,
    add_checkpoint_and_device_options,
    build_int_type,
    format_first_line,
    run_command,
)
from genexp.cli.plugins import add_plugin_option, use_plugins
from genexp.errors import ConfigError, GenexpError
from genexp.run_dir.paths import EVALUATION_FILE

if TYPE_CHECKING:
    from rich.table import Table

    from genexp.cli.scores import Evaluation
    from genexp.networks.inception import Inception

PROGRAM = "genexp-evaluate"


def main() -> NoReturn:
    """Evaluate the runs named on the command line."""
    run_command(PROGRAM, lambda: _run(sys.argv[1:]))


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        PROGRAM,
        description="Evaluate finished runs on the test split, with every metric that applies. The scores of each "
        "run are also written to RUN/evaluation.json.",
    )
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    add_checkpoint_and_device_options(parser)
    add_plugin_option(parser)
    parser.add_argument(
        "--nll-samples",
        type=build_int_type(0),
        default=200,
        metavar="N",
        help="latent samples per image for the log-likelihood of techniques that estimate one; more samples "
        "give a tighter bound and take proportionally longer; 0 skips it (default: %(default)s)",
    )
    parser.add_argument(
        "--nll-images",
        type=build_int_type(1),
        metavar="N",
        help="estimate the log-likelihood of a fixed random subset of N test images (default: all)",
    )
    parser.add_argument(
        "--inception",
        action="store_true",
        help="also compute the standard FID and KID of generated images with torch-fidelity "
        "(pip install 'genexp[inception]')",
    )
    parser.add_argument(
        "--inception-weights",
        type=Path,
        metavar="FILE",
        help="weights of Inception for --inception (default: downloaded once, 95 MB)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per run")
    return parser


def _run(arguments: Sequence[str]) -> int:
    args = _build_parser().parse_args(arguments)
    use_plugins(args.plugin)
    inception = _load_inception(args)
    evaluations, exit_code = [], 0
    for run_dir in args.run:
        try:
            evaluations.append(_evaluate_run(run_dir, args, inception))
        except (GenexpError, OSError) as error:
            if len(args.run) == 1:
                raise
            print(f"{PROGRAM}: {format_first_line(error)}", file=sys.stderr)
            exit_code = 1
    _print_scores(evaluations, as_json=args.json)
    return exit_code


def _load_inception(args: argparse.Namespace) -> Inception | None:
    """Return the network of the Inception scores, or None without the option. Raises ConfigError."""
    if not args.inception:
        if args.inception_weights is not None:
            raise ConfigError(f"--inception-weights {args.inception_weights}: no effect. Add --inception.")
        return None
    from genexp.networks.inception import load_inception  # imports torch

    inception = load_inception(args.inception_weights)
    if not inception.has_published_weights:
        print(
            "--inception: the weights are not the published ones. FID and KID are not comparable with those of "
            "papers.",
            file=sys.stderr,
        )
    return inception


def _evaluate_run(run_dir: Path, args: argparse.Namespace, inception: Inception | None) -> Evaluation:
    from rich.console import Console

    from genexp.cli.scores import EvaluationOptions, evaluate, write_evaluation  # imports torch
    from genexp.runs.load import load_run, read_config

    run = load_run(run_dir, read_config(run_dir), checkpoint_name=args.checkpoint, device_name=args.device)
    with Console(stderr=True).status(str(run_dir)) as status:
        evaluation = evaluate(
            run,
            EvaluationOptions(args.nll_samples, args.nll_images, inception),
            on_measure_start=lambda measure: status.update(f"{run_dir}: {measure}"),
        )
    for measure, reason in evaluation.skip_reasons.items():
        print(f"{run_dir}: {measure} scores are skipped: {reason}", file=sys.stderr)
    write_evaluation(evaluation)
    return evaluation


def _print_scores(evaluations: Sequence[Evaluation], *, as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        for evaluation in evaluations:
            print(json.dumps(evaluation.to_dict(), ensure_ascii=False))
    elif evaluations:
        console = Console()
        if not console.is_terminal:
            console.width = 1000  # columns; a file or pipe has no limit on its width
        console.print(_build_table(evaluations))
        for evaluation in evaluations:
            if "generated" in evaluation.used_options:
                console.print(_describe_generation(evaluation.used_options), soft_wrap=True, highlight=False)
            if "inception_generated" in evaluation.used_options:
                console.print(_describe_inception(evaluation.used_options), soft_wrap=True, highlight=False)
            if "nll_samples" in evaluation.used_options:
                console.print(_describe_likelihood(evaluation.used_options), soft_wrap=True, highlight=False)
            console.print(f"scores: {evaluation.run.run_dir / EVALUATION_FILE}", soft_wrap=True, highlight=False)


def _describe_generation(options: Mapping[str, Any]) -> str:
    return f"generation: {options['generated']:,} generated and {options['real']:,} test images"


def _describe_inception(options: Mapping[str, Any]) -> str:
    return (
        f"inception: {options['inception_generated']:,} generated and {options['inception_real']:,} test images, "
        f"weights {options['inception_weights']}"
    )


def _describe_likelihood(options: Mapping[str, Any]) -> str:
    return (
        f"log-likelihood: {options['nll_samples']:,} importance samples, {options['nll_images']:,} test samples, "
        f"{options['nll_pixels']}; standard error {options['nll_standard_error']:.2g} nats"
    )


def _build_table(evaluations: Sequence[Evaluation]) -> Table:
    """Return a table with one row per metric and one column per run."""
    from rich.table import Table

    table = Table(title="Scores on the test split")
    table.add_column("metric")
    for evaluation in evaluations:
        run = evaluation.run
        task = f"{run.technique.name} on {run.dataset.name}"
        origin = f"{run.checkpoint_path.name}, step {run.step:,}"
        table.add_column(f"{task}\n{run.run_dir.name}\n{origin}", justify="right", overflow="fold")
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores)
    for name in names:
        values = [evaluation.scores.get(name) for evaluation in evaluations]
        table.add_row(name, *("" if value is None else f"{value:,.5g}" for value in values))
    return table


if __name__ == "__main__":
    main()
