"""Number of test processes, and thread limits for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Set before torch is imported, here and in the processes that tests start. Several tests run at once,
# and threads that wait for a core in use by another test are much slower than one thread alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than there are cores: many tests wait for processes that they have started."""
    return 1 + (os.cpu_count() or 1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread: on a busy machine, tiny networks wait for the threads of a pool."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
