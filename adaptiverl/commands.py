"""What the command lines of ``python -m adaptiverl`` share."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong in one line, and leave with status 2."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")
