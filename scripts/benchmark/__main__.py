"""Entry point of `python scripts/benchmark SUITE`."""

import sys
from pathlib import Path

# Python puts this folder on the path, where `logging_overhead` and its neighbors are no package.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmark.command import main  # noqa: E402

if __name__ == "__main__":  # worker processes import this file too
    main()
