"""``python -m bench.alignment_variants``: see ``--help``."""

from __future__ import annotations

import sys

from bench.alignment_variants.cli import main

sys.exit(main(sys.argv[1:]))
