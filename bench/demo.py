"""``python -m bench.demo``: see ``--help``."""

from __future__ import annotations

import sys

from bench.studies.demo import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
