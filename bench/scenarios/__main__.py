"""`python -m bench.scenarios`."""

from __future__ import annotations

import sys

from bench.scenarios.cli import main

sys.exit(main(sys.argv[1:]))
