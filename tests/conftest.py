"""One thread per test process: two threads on two busy cores wait for each other more than they compute."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
