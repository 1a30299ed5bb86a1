"""``python -m adaptiverl.hindsight``: the same as ``python -m adaptiverl hindsight``."""

import sys

from adaptiverl.hindsight.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
