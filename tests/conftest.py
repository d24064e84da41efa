"""What holds for all tests."""

import os

# Before torch is imported, here and in the processes that tests start: several tests run at once, and
# threads that wait for a core that another test has take many times as long as one thread alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")
