"""What holds for all tests."""

import os

# Before torch is imported, here and in the processes that tests start: several tests run at once, and
# threads that wait for a core that another test has take many times as long as one thread alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers() -> int:
    """Return two workers a core: the long tests wait for processes they started more than they compute."""
    return 2 * (os.cpu_count() or 1)
