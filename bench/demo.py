"""``python -m bench.demo``: see ``--help``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from bench.studies.demo import main
    except ImportError as error:
        hint = "run `make venv` once, then `.venv/bin/python -m bench.demo`"
        sys.exit(f"demo: {error}; {hint}")
    sys.exit(main(sys.argv[1:]))
