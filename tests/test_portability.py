"""The package without the parts of Python's standard library that only Unix has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.command import TINY_RUN_OVERRIDES, load_status

# Imports the libraries, which may use Unix; hides what Windows lacks; imports all modules; trains a run.
SCRIPT = """
import importlib, os, pkgutil, signal, sys
import filelock, hydra, joblib, matplotlib.pyplot, optuna, plotly.io, sklearn.cluster, sklearn.metrics
import submitit, tensorboardX, torch, torch.distributed, torch.utils.data, torch._dynamo
import multiprocessing.resource_tracker, multiprocessing.popen_forkserver

for name in ("fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"):
    sys.modules[name] = None  # an import raises ImportError
for name in ("fork", "fchmod", "fchown", "getegid", "geteuid", "getgid", "getpgid", "getuid", "killpg", "mkfifo",
             "nice", "O_DIRECTORY", "O_NOFOLLOW", "sched_getaffinity", "setsid", "sysconf", "uname"):
    delattr(os, name)
for name in ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "alarm", "pthread_kill",
             "pthread_sigmask", "setitimer", "sigwait"):
    delattr(signal, name)

import genexp
for package in (genexp, importlib.import_module("hydra_plugins")):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if package is genexp or ".genexp_" in module.name:
            importlib.import_module(module.name)

from genexp.train import main
main()
"""


def test_modules_import_and_a_run_trains_without_unix(tmp_path: Path) -> None:
    overrides = ("model=kmeans", *TINY_RUN_OVERRIDES, "trainer.max_steps=2", f"hydra.run.dir={tmp_path}/run")
    script = subprocess.run(
        [sys.executable, "-c", SCRIPT, *overrides],
        capture_output=True,
        text=True,
        env={**os.environ, "GENEXP_PLUGINS": ""},
    )
    assert script.returncode == 0, script.stderr
    assert load_status(tmp_path / "run")["state"] == "finished"
