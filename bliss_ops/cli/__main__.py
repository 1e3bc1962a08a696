"""`python -m bliss_ops.cli`."""

import sys

from bliss_ops.cli import main

sys.exit(main())
