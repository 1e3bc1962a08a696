"""`python -m bliss_ops.stack STATE_DIR`: the supervisor of a stack, as `bliss up` starts it."""

import sys
from pathlib import Path

from bliss_ops.stack.supervisor import main

main(Path(sys.argv[1]))
