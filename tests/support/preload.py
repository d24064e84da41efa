"""Module that the fork server imports: a run whose imports and parser tables all forked processes inherit.

A process that starts without them needs more than a second before its first step.
"""

from __future__ import annotations

import os
import tempfile

from tests.support.command import FIGURES_ON, run_genexp
from tests.support.compose import make_tiny_overrides

with tempfile.TemporaryDirectory() as directory:
    environment = dict(os.environ)
    run_genexp(
        *make_tiny_overrides("stacked_autoencoder"),
        "trainer.max_steps=2",
        FIGURES_ON,
        f"hydra.run.dir={directory}/run",
    )
    os.environ.clear()
    os.environ.update(environment)

import gc

gc.collect()
gc.freeze()
