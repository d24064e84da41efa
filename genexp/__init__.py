"""Experiments in unsupervised and generative learning, from one command line."""

import os

__version__ = "0.1.0"

# OpenMP threads spin while they wait for each other, by default for milliseconds. Beside another busy process they
# spin for a thread that is not scheduled, and a small network takes ten times as long. On idle cores this short
# spin is enough. The variable is read when torch is imported, so it is set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
