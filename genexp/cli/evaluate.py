"""`genexp-evaluate RUN...`: the scores of finished runs on the test split, beside each other."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from genexp.cli.common import Parser, add_run_options, at_least, in_one_line, run_command
from genexp.errors import GenexpError

if TYPE_CHECKING:
    from rich.table import Table

    from genexp.cli.scores import Evaluation

PROGRAM = "genexp-evaluate"


def main() -> NoReturn:
    """Evaluate the runs named on the command line."""
    run_command(PROGRAM, lambda: _work(sys.argv[1:]))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        PROGRAM,
        description="Measure all that can be measured of finished runs, on the test split. Each run's scores are "
        "also written to RUN/evaluation.json.",
    )
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    add_run_options(parser)
    parser.add_argument(
        "--nll-samples",
        type=at_least(0),
        default=200,
        metavar="N",
        help="latents of each image that its log-likelihood is estimated from, where the technique has one; "
        "5000 give a tighter bound and take 25 times as long as 200, 0 leave it out (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print each run's evaluation as one line of JSON")
    return parser


def _work(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    evaluations, failures = [], 0
    for folder in given.run:
        try:
            evaluations.append(_evaluated(folder, given))
        except (GenexpError, OSError) as error:
            if len(given.run) == 1:
                raise
            print(f"{PROGRAM}: {in_one_line(error)}", file=sys.stderr)
            failures = 1
    _show(evaluations, as_json=given.json)
    return failures


def _evaluated(folder: Path, given: argparse.Namespace) -> Evaluation:
    from rich.console import Console

    from genexp.cli.scores import Options, evaluate, write_evaluation  # torch: only now
    from genexp.runs.load import open_run, read_config

    run = open_run(folder, read_config(folder), which=given.checkpoint, device=given.device)
    with Console(stderr=True).status(str(folder)) as status:
        evaluation = evaluate(
            run, Options(given.nll_samples), tell=lambda measure: status.update(f"{folder}: {measure}")
        )
    for measure, reason in evaluation.left_out.items():
        print(f"{folder}: {measure} scores are left out: {reason}", file=sys.stderr)
    write_evaluation(evaluation)
    return evaluation


def _show(evaluations: Sequence[Evaluation], *, as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        for evaluation in evaluations:
            print(json.dumps(evaluation.as_dict(), ensure_ascii=False))
    elif evaluations:
        console = Console()
        if not console.is_terminal:
            console.width = 1000  # a file has room for a column a run
        console.print(_table(evaluations))
        for evaluation in evaluations:
            console.print(
                f"written to {evaluation.run.folder / 'evaluation.json'}", soft_wrap=True, highlight=False
            )


def _table(evaluations: Sequence[Evaluation]) -> Table:
    """Return a table with a column for each run."""
    from rich.table import Table

    table = Table(title="Scores on the test split")
    table.add_column("metric")
    for evaluation in evaluations:
        run = evaluation.run
        task = f"{run.technique.name} on {run.dataset.name}"
        origin = f"{run.checkpoint.name}, step {run.step:,}"
        table.add_column(f"{task}\n{run.folder.name}\n{origin}", justify="right", overflow="fold")
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores)
    for name in names:
        values = [evaluation.scores.get(name) for evaluation in evaluations]
        table.add_row(name, *("" if value is None else f"{value:,.5g}" for value in values))
    return table


if __name__ == "__main__":
    main()
