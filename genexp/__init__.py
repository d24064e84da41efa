"""genexp: experiments in unsupervised and generative learning, from one command line."""

import os

__version__ = "0.1.0"

# Threads of torch that wait for each other spin, by default for milliseconds: beside any other busy process they
# wait for one that is not running, and a small network takes ten times as long. So short a spin is enough on cores
# of one's own. It is read when torch is imported, so this comes first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
