"""Entry point of `python scripts/benchmark SUITE`."""

import sys
from pathlib import Path

# Python puts this directory on sys.path. Importing `benchmark` as a package requires its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmark.cli import main  # noqa: E402

if __name__ == "__main__":  # worker processes import this file too
    main()
