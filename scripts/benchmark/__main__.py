"""Entry point of `python scripts/benchmark SUITE`."""

import sys
from pathlib import Path

# Python puts this directory on sys.path. Importing `benchmark` as a package requires its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmark.cli import main  # noqa: E402
from genexp.cli.common import run_command  # noqa: E402


def run() -> int:
    """Run the suites named on the command line. Return 0. Raises GenexpError."""
    main()
    return 0


if __name__ == "__main__":  # worker processes import this file too
    run_command("benchmark", run)
