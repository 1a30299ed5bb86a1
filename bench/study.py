"""``python -m bench.study``: see ``--help``."""

import sys

from bench.studies.study import main

# Worker processes import this file as well, under another name.
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
