"""``python -m bench.demo``: see ``--help``."""

from __future__ import annotations

import sys


def _main() -> int:
    try:
        from bench.studies.demo import main
    except ImportError as error:
        hint = "run `make venv` once, then `.venv/bin/python -m bench.demo`"
        print(f"demo: {error}; {hint}", file=sys.stderr)
        return 2
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_main())
