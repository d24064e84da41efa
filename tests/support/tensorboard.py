"""TensorBoard: its reader of event files, and its server on a directory of runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(run_dir: Path) -> EventAccumulator:
    """Return the events of a run as TensorBoard reads them, without a limit of scalars and images."""
    return EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 0}).Reload()


def query_tensorboard(url: str, **body: Any) -> Any:
    """Repeat a request until its answer is not empty, and return the answer."""
    data = json.dumps(body).encode() if body else None
    headers = {"Content-Type": "application/json"} if body else {}
    for _ in range(100):
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            content = json.load(response)
        if content:
            return content
        time.sleep(0.2)
    raise AssertionError(f"nothing at {url}")


@contextmanager
def start_tensorboard(logdir: Path) -> Iterator[str]:
    """Start TensorBoard, yield its address and stop it at the end of the block."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logdir),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ]
    command += ["--load_fast", "false"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
            yield address.rstrip("/")
        finally:
            timer.cancel()
            stop_server(process)


def stop_server(process: subprocess.Popen[str]) -> None:
    """Stop TensorBoard. It may hang after SIGTERM and is killed then."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
