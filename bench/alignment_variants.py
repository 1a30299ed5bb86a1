"""``python -m bench.alignment_variants``: see ``--help``."""

from __future__ import annotations

import sys

from bench.studies.grid import ALIGNMENT, main

if __name__ == "__main__":
    sys.exit(main(ALIGNMENT, sys.argv[1:]))
