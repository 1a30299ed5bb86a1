"""``python -m bench.lr_robustness``: see ``--help``."""

import sys

from bench.studies.grid import LR_ROBUSTNESS, main

# Worker processes import this file as well, under another name.
if __name__ == "__main__":
    sys.exit(main(LR_ROBUSTNESS, sys.argv[1:]))
