"""``python -m bench.demo``: see ``--help``."""

from __future__ import annotations

import sys


def _main() -> int:
    try:
        from bench.demo.cli import main
    except ImportError as error:
        print(
            f"demo: {error}; run `make venv` once, then `.venv/bin/python -m bench.demo`",
            file=sys.stderr,
        )
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(_main())
