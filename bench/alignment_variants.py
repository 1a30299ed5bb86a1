"""``python -m bench.alignment_variants``: see ``--help``."""

import sys

from bench.studies.grid import ALIGNMENT, main

if __name__ == "__main__":
    sys.exit(main(ALIGNMENT, sys.argv[1:]))
