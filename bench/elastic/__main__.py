"""``torchrun --nproc-per-node=2 --max-restarts=3 -m bench.elastic``: see ``--help``."""

from __future__ import annotations

import sys

from bench.elastic.cli import main

sys.exit(main())
