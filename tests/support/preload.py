"""Preload module of the fork server. Its run imports modules and builds tables of parsers.

Forked processes inherit both. A process without them needs more than a second before its first step.
"""

from __future__ import annotations

import gc
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

gc.collect()
gc.freeze()  # else a collection in a forked process would copy the pages of all objects
