"""``python -m bench.demo``: see ``--help``."""

import sys

from bench.studies.demo import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
